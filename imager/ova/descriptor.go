package ova

import (
	"encoding/xml"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kilnhq/kiln/imager/vmdk"
)

// Firmware is what starts the machine.
type Firmware string

// Firmwares.
const (
	EFI  Firmware = "efi"
	BIOS Firmware = "bios"
)

// Machine is the virtual machine. It has one disk and one network card, a
// vmxnet3. All but Name may be left empty.
type Machine struct {
	// Name is the name of the machine, and of the files in the archive.
	Name string

	// Product, Vendor, Version and URL say what is on the disk. They are left out
	// if there is no product.
	Product, Vendor, Version, URL string

	Hardware   int          // version of the virtual hardware, 15 (ESXi 6.7 U2) or higher; 0 is 15
	CPUs       int          // 0 is 2
	MemoryMiB  int          // 0 is 2048, ESXi wants a multiple of 4
	Firmware   Firmware     // empty is EFI
	SecureBoot bool         // of EFI
	Controller vmdk.Adapter // PVSCSI, which is empty, or LSILogic

	// GuestOS is VMware's name for the operating system. Empty is the latest
	// "other Linux" of 64 bits that the hardware knows.
	GuestOS string

	// Network is the name of the network in the package, which the user maps to
	// one of theirs. Empty is "VM Network", ESXi's own.
	Network string
}

// Limits of hardware version 15.
const (
	minHardware  = 15
	maxHardware  = 99
	maxCPUs      = 128
	maxMemoryMiB = 6 << 20
	maxName      = 80
)

func (m Machine) diskName() string { return m.Name + "-disk1.vmdk" }

// withDefaults fills in what is empty and checks the rest.
func (m Machine) withDefaults() (Machine, error) {
	if m.Hardware == 0 {
		m.Hardware = minHardware
	}
	if m.CPUs == 0 {
		m.CPUs = 2
	}
	if m.MemoryMiB == 0 {
		m.MemoryMiB = 2048
	}
	if m.Firmware == "" {
		m.Firmware = EFI
	}
	if m.Controller == "" {
		m.Controller = vmdk.PVSCSI
	}
	if m.Network == "" {
		m.Network = "VM Network"
	}
	if m.GuestOS == "" {
		switch {
		case m.Hardware >= 20:
			m.GuestOS = "other6xLinux64Guest"
		case m.Hardware >= 17:
			m.GuestOS = "other5xLinux64Guest"
		default:
			m.GuestOS = "other4xLinux64Guest"
		}
	}
	switch {
	case m.Name == "" || len(m.Name) > maxName || strings.Trim(m.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+") != "" || m.Name[0] == '.':
		return m, fmt.Errorf("%w: name %q, want up to %d letters, digits and any of -_.+", ErrInvalid, m.Name, maxName)
	case m.Hardware < minHardware || m.Hardware > maxHardware:
		return m, fmt.Errorf("%w: virtual hardware version %d, want %d or higher", ErrInvalid, m.Hardware, minHardware)
	case m.CPUs < 1 || m.CPUs > maxCPUs:
		return m, fmt.Errorf("%w: %d CPUs, want 1 to %d", ErrInvalid, m.CPUs, maxCPUs)
	case m.MemoryMiB < 4 || m.MemoryMiB > maxMemoryMiB || m.MemoryMiB%4 != 0:
		return m, fmt.Errorf("%w: %d MiB of memory, want a multiple of 4 up to %d", ErrInvalid, m.MemoryMiB, maxMemoryMiB)
	case m.Firmware != EFI && m.Firmware != BIOS:
		return m, fmt.Errorf("%w: firmware %q, want efi or bios", ErrInvalid, m.Firmware)
	case m.SecureBoot && m.Firmware != EFI:
		return m, fmt.Errorf("%w: secure boot with firmware %s, want efi", ErrInvalid, m.Firmware)
	case m.Controller != vmdk.PVSCSI && m.Controller != vmdk.LSILogic:
		return m, fmt.Errorf("%w: controller %q, want pvscsi or lsilogic", ErrInvalid, m.Controller)
	}
	for _, s := range []string{m.Product, m.Vendor, m.Version, m.URL, m.GuestOS, m.Network} {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0xfffe || r == 0xffff }) {
			return m, fmt.Errorf("%w: %q has characters that cannot be in XML", ErrInvalid, s)
		}
	}
	return m, nil
}

// Namespaces.
const (
	nsOVF  = "http://schemas.dmtf.org/ovf/envelope/1"
	nsCIM  = "http://schemas.dmtf.org/wbem/wscim/1/common"
	nsRASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
	nsVSSD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
	nsVMW  = "http://www.vmware.com/schema/ovf"

	formatVMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
)

// CIM's numbers for kinds of resources, and for Linux on 64 bits.
const (
	resourceCPU      = 3
	resourceMemory   = 4
	resourceSCSI     = 6
	resourceEthernet = 10
	resourceDisk     = 17

	osLinux64 = 101
)

// The elements of a descriptor, in the order of the schema.
type (
	envelope struct {
		XMLName xml.Name `xml:"Envelope"`
		NS      string   `xml:"xmlns,attr"`
		CIM     string   `xml:"xmlns:cim,attr"`
		OVF     string   `xml:"xmlns:ovf,attr"`
		RASD    string   `xml:"xmlns:rasd,attr"`
		VMW     string   `xml:"xmlns:vmw,attr"`
		VSSD    string   `xml:"xmlns:vssd,attr"`

		File    fileElement    `xml:"References>File"`
		Disks   diskSection    `xml:"DiskSection"`
		Network networkSection `xml:"NetworkSection"`
		System  virtualSystem  `xml:"VirtualSystem"`
	}

	fileElement struct {
		Href string `xml:"ovf:href,attr"`
		ID   string `xml:"ovf:id,attr"`
		Size uint64 `xml:"ovf:size,attr"`
	}

	diskSection struct {
		Info string
		Disk struct {
			Capacity int64  `xml:"ovf:capacity,attr"`
			Units    string `xml:"ovf:capacityAllocationUnits,attr"`
			ID       string `xml:"ovf:diskId,attr"`
			File     string `xml:"ovf:fileRef,attr"`
			Format   string `xml:"ovf:format,attr"`
		}
	}

	networkSection struct {
		Info    string
		Network struct {
			Name        string `xml:"ovf:name,attr"`
			Description string
		}
	}

	virtualSystem struct {
		ID       string `xml:"ovf:id,attr"`
		Info     string
		Name     string
		Product  *productSection `xml:"ProductSection"`
		OS       osSection       `xml:"OperatingSystemSection"`
		Hardware hardwareSection `xml:"VirtualHardwareSection"`
	}

	productSection struct {
		Info       string
		Product    string
		Vendor     string `xml:",omitempty"`
		Version    string `xml:",omitempty"`
		ProductURL string `xml:"ProductUrl,omitempty"`
	}

	osSection struct {
		ID     int    `xml:"ovf:id,attr"`
		OSType string `xml:"vmw:osType,attr"`
		Info   string
	}

	hardwareSection struct {
		Info   string
		System struct {
			ElementName string `xml:"vssd:ElementName"`
			InstanceID  int    `xml:"vssd:InstanceID"`
			Identifier  string `xml:"vssd:VirtualSystemIdentifier"`
			Type        string `xml:"vssd:VirtualSystemType"`
		}
		Items  []item   `xml:"Item"`
		Config []config `xml:"vmw:Config"`
	}

	// An item's elements are in alphabetical order.
	item struct {
		Address             string `xml:"rasd:Address,omitempty"`
		AddressOnParent     string `xml:"rasd:AddressOnParent,omitempty"`
		AllocationUnits     string `xml:"rasd:AllocationUnits,omitempty"`
		AutomaticAllocation string `xml:"rasd:AutomaticAllocation,omitempty"`
		Connection          string `xml:"rasd:Connection,omitempty"`
		Description         string `xml:"rasd:Description,omitempty"`
		ElementName         string `xml:"rasd:ElementName"`
		HostResource        string `xml:"rasd:HostResource,omitempty"`
		InstanceID          int    `xml:"rasd:InstanceID"`
		Parent              int    `xml:"rasd:Parent,omitempty"`
		ResourceSubType     string `xml:"rasd:ResourceSubType,omitempty"`
		ResourceType        int    `xml:"rasd:ResourceType"`
		VirtualQuantity     int    `xml:"rasd:VirtualQuantity,omitempty"`
	}

	config struct {
		Required bool   `xml:"ovf:required,attr"`
		Key      string `xml:"vmw:key,attr"`
		Value    string `xml:"vmw:value,attr"`
	}
)

// descriptor returns the text for a disk of so many bytes whose file has so many.
func (m Machine) descriptor(capacity int64, fileSize uint64) ([]byte, error) {
	e := envelope{NS: nsOVF, CIM: nsCIM, OVF: nsOVF, RASD: nsRASD, VMW: nsVMW, VSSD: nsVSSD}
	e.File = fileElement{Href: m.diskName(), ID: "file1", Size: fileSize}

	e.Disks.Info = "Virtual disk information"
	d := &e.Disks.Disk
	d.Capacity, d.Units, d.ID, d.File, d.Format = capacity, "byte", "vmdisk1", "file1", formatVMDK

	e.Network.Info = "The list of logical networks"
	e.Network.Network.Name, e.Network.Network.Description = m.Network, "The network of the machine"

	s := &e.System
	s.ID, s.Info, s.Name = m.Name, "A virtual machine", m.Name
	if m.Product != "" {
		s.Product = &productSection{Info: "What is on the disk", Product: m.Product, Vendor: m.Vendor, Version: m.Version, ProductURL: m.URL}
	}
	s.OS = osSection{ID: osLinux64, OSType: m.GuestOS, Info: "The kind of guest operating system"}

	h := &s.Hardware
	h.Info = "Virtual hardware requirements"
	h.System.ElementName, h.System.Identifier, h.System.Type = "Virtual Hardware Family", m.Name, fmt.Sprintf("vmx-%d", m.Hardware)
	controller := "VirtualSCSI"
	if m.Controller == vmdk.LSILogic {
		controller = "lsilogic"
	}
	h.Items = []item{
		{InstanceID: 1, ResourceType: resourceCPU, ElementName: fmt.Sprintf("%d virtual CPU(s)", m.CPUs), Description: "Number of Virtual CPUs",
			AllocationUnits: "hertz * 10^6", VirtualQuantity: m.CPUs},
		{InstanceID: 2, ResourceType: resourceMemory, ElementName: fmt.Sprintf("%dMB of memory", m.MemoryMiB), Description: "Memory Size",
			AllocationUnits: "byte * 2^20", VirtualQuantity: m.MemoryMiB},
		{InstanceID: 3, ResourceType: resourceSCSI, ElementName: "SCSI controller 0", Description: "SCSI Controller",
			Address: "0", ResourceSubType: controller},
		{InstanceID: 4, ResourceType: resourceDisk, ElementName: "Hard disk 1",
			AddressOnParent: "0", Parent: 3, HostResource: "ovf:/disk/vmdisk1"},
		{InstanceID: 5, ResourceType: resourceEthernet, ElementName: "Network adapter 1", Description: "VmxNet3 ethernet adapter",
			AddressOnParent: "7", AutomaticAllocation: "true", Connection: m.Network, ResourceSubType: "VmxNet3"},
	}
	h.Config = []config{{Key: "firmware", Value: string(m.Firmware)}}
	if m.Firmware == EFI {
		h.Config = append(h.Config, config{Key: "bootOptions.efiSecureBootEnabled", Value: fmt.Sprint(m.SecureBoot)})
	}

	b, err := xml.MarshalIndent(&e, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return append(append([]byte(xml.Header), b...), '\n'), nil
}
