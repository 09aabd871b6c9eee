package devlinks

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

const pci = "pci0000:00/0000:00:04.0"

func TestVirtio(t *testing.T) {
	tr := newTree(t)
	tr.device(pci, "pci")
	tr.device(pci+"/virtio1", "virtio")
	disk := tr.device(pci+"/virtio1/block/vda", "block", "DEVTYPE=disk", "DISKSEQ=9", "serial=a b/c", "size=8")
	part := tr.device(pci+"/virtio1/block/vda/vda5", "block", "DEVTYPE=partition", "partition=5", "size=8")
	tr.has(disk, "by-id/virtio-a_b_c", "by-path/pci-0000:00:04.0", "by-path/virtio-pci-0000:00:04.0", "by-diskseq/9")
	tr.has(part, "by-id/virtio-a_b_c-part5", "by-path/pci-0000:00:04.0-part5", "by-path/virtio-pci-0000:00:04.0-part5")
}

func TestNVMe(t *testing.T) {
	tr := newTree(t)
	tr.device("pci0000:00/0000:00:1d.0", "pci")
	tr.device("pci0000:00/0000:00:1d.0/0000:03:00.0", "pci")
	const nvme = "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0"
	tr.device(nvme, "nvme", "model=QEMU NVMe Ctrl                          ", "serial=k1                  ")
	disk := tr.device(nvme+"/nvme0n1", "block", "DEVTYPE=disk", "wwid=eui.0025385b71b00a4c", "nsid=1")
	part := tr.device(nvme+"/nvme0n1/nvme0n1p2", "block", "DEVTYPE=partition", "partition=2")
	tr.has(disk, "by-id/nvme-eui.0025385b71b00a4c", "by-id/nvme-QEMU_NVMe_Ctrl_k1", "by-id/nvme-QEMU_NVMe_Ctrl_k1_1", "by-path/pci-0000:03:00.0-nvme-1")
	tr.has(part, "by-id/nvme-eui.0025385b71b00a4c-part2", "by-id/nvme-QEMU_NVMe_Ctrl_k1-part2", "by-id/nvme-QEMU_NVMe_Ctrl_k1_1-part2", "by-path/pci-0000:03:00.0-nvme-1-part2")
	tr.has(tr.device(nvme+"/ng0n1", "nvme-generic"))
}

// identifyPage is page 0x89 with the data of a disk.
func identifyPage(model, serial string, wwn uint64) string {
	page := make([]byte, identifyAt+identifySize)
	page[1] = 0x89
	id := page[identifyAt:]
	text := func(word, n int, s string) {
		s = fmt.Sprintf("%-*s", n, s)
		for i := 0; i < n; i += 2 {
			id[2*word+i], id[2*word+i+1] = s[i+1], s[i]
		}
	}
	text(10, 20, serial)
	text(27, 40, model)
	for i := range 4 {
		w := uint16(wwn >> (48 - 16*i))
		id[2*(108+i)], id[2*(108+i)+1] = byte(w), byte(w>>8)
	}
	return "vpd_pg89=hex:" + hex.EncodeToString(page)
}

func TestATA(t *testing.T) {
	tr := newTree(t)
	tr.device(pci, "pci")
	const port = pci + "/ata3"
	tr.device(port, "")
	tr.device(port+"/ata_port/ata3", "ata_port", "port_no=1")
	tr.device(port+"/host2", "scsi", "DEVTYPE=scsi_host")
	const target = port + "/host2/target2:0:0"
	tr.device(target, "scsi", "DEVTYPE=scsi_target")
	tr.device(target+"/2:0:0:0", "scsi", "DEVTYPE=scsi_device", "vendor=ATA     ", "model=Some Disk 0123456", "type=0", "scsi_level=6",
		identifyPage("Some Disk 0123456789 (long)", "    S/N 12", 0x5000c500a0b1c2d3))
	disk := tr.device(target+"/2:0:0:0/block/sda", "block", "DEVTYPE=disk")
	part := tr.device(target+"/2:0:0:0/block/sda/sda12", "block", "DEVTYPE=partition", "partition=12")
	const id = "by-id/ata-Some_Disk_0123456789__long__S_N_12"
	tr.has(disk, id, "by-id/wwn-0x5000c500a0b1c2d3", "by-path/pci-0000:00:04.0-ata-1.0", "by-path/pci-0000:00:04.0-ata-1")
	tr.has(part, id+"-part12", "by-id/wwn-0x5000c500a0b1c2d3-part12", "by-path/pci-0000:00:04.0-ata-1.0-part12", "by-path/pci-0000:00:04.0-ata-1-part12")
}

// page83 is page 0x83 with designators, each of which is a code set, an association and
// type, and data.
func page83(designators ...[3]string) string {
	var body []byte
	for _, d := range designators {
		var code, kind byte
		fmt.Sscan(d[0], &code)
		fmt.Sscan(d[1], &kind)
		data := []byte(d[2])
		if code == 1 {
			data, _ = hex.DecodeString(d[2])
		}
		body = append(append(body, code, kind, 0, byte(len(data))), data...)
	}
	return "vpd_pg83=hex:" + hex.EncodeToString(append([]byte{0, 0x83, 0, byte(len(body))}, body...))
}

func TestSCSI(t *testing.T) {
	for name, c := range map[string]struct {
		attributes []string
		want       []string
	}{
		"of QEMU": {[]string{page83([3]string{"2", "0", "drive-scsi0"})}, []string{"scsi-0QEMU_QEMU_HARDDISK_drive-scsi0"}},
		"NAA": {[]string{page83([3]string{"2", "1", "QEMU    x"}, [3]string{"1", "0x13", "5000000000000099"}, [3]string{"1", "3", "5000c50012345678"}, [3]string{"1", "2", "0123456789abcdef"})},
			[]string{"scsi-35000c50012345678", "wwn-0x5000c50012345678"}},
		"NAA extended": {[]string{page83([3]string{"1", "3", "5000c50012345678"}, [3]string{"1", "3", "600508b1001c79ade5178f0626caaa9c"})},
			[]string{"scsi-3600508b1001c79ade5178f0626caaa9c", "wwn-0x600508b1001c79ade5178f0626caaa9c"}},
		"T10":           {[]string{page83([3]string{"2", "1", "ATA     a disk   x"})}, []string{"scsi-1ATA_a_disk_x"}},
		"serial number": {[]string{"vpd_pg80=hex:00800004" + hex.EncodeToString([]byte(" s 1"))}, []string{"scsi-SQEMU_QEMU_HARDDISK_s_1"}},
		"nothing":       {nil, nil},
		"short":         {[]string{"vpd_pg83=hex:00830040010300"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t)
			tr.device(pci, "pci")
			tr.device(pci+"/virtio2", "virtio")
			for _, host := range []string{"host5", "host6"} {
				tr.device(pci+"/virtio2/"+host, "scsi", "DEVTYPE=scsi_host")
			}
			const target = pci + "/virtio2/host6/target6:0:1"
			tr.device(target, "scsi", "DEVTYPE=scsi_target")
			tr.device(target+"/6:0:1:300", "scsi", append([]string{"DEVTYPE=scsi_device", "vendor=QEMU    ", "model=QEMU HARDDISK   ", "type=0"}, c.attributes...)...)
			disk := tr.device(target+"/6:0:1:300/block/sdb", "block", "DEVTYPE=disk")
			want := []string{"by-path/pci-0000:00:04.0-scsi-1:0:1:300"}
			for _, w := range c.want {
				want = append(want, "by-id/"+w)
			}
			tr.has(disk, want...)
		})
	}
}

func TestUSB(t *testing.T) {
	tr := newTree(t)
	tr.device(pci, "pci")
	tr.device(pci+"/usb1", "usb", "DEVTYPE=usb_device")
	tr.device(pci+"/usb1/1-2", "usb", "DEVTYPE=usb_device", "idVendor=0951", "idProduct=1666", "manufacturer=Maker", "product=Stick", "serial=60A4 4C")
	const face = pci + "/usb1/1-2/1-2:1.0"
	tr.device(face, "usb", "DEVTYPE=usb_interface", "bInterfaceClass=08", "bInterfaceSubClass=06", "bInterfaceProtocol=50")
	tr.device(face+"/host7", "scsi", "DEVTYPE=scsi_host")
	tr.device(face+"/host7/target7:0:0", "scsi", "DEVTYPE=scsi_target")
	tr.device(face+"/host7/target7:0:0/7:0:0:0", "scsi", "DEVTYPE=scsi_device", "vendor=Kingston", "model=DataTraveler 3.0", "rev=PMAP", "type=0")
	disk := tr.device(face+"/host7/target7:0:0/7:0:0:0/block/sdc", "block", "DEVTYPE=disk")
	tr.has(disk, "by-id/usb-Kingston_DataTraveler_3.0_60A4_4C-0:0", "by-path/pci-0000:00:04.0-usb-0:2:1.0-scsi-0:0:0:0")
}

func TestSAS(t *testing.T) {
	for _, c := range []struct{ phys, want string }{{"1", "sas-exp0x500-phy11-lun-0"}, {"2", "sas-0x5000c5-lun-0"}} {
		tr := newTree(t)
		tr.device(pci, "pci")
		dir := pci + "/host0"
		tr.device(dir, "scsi", "DEVTYPE=scsi_host")
		tr.device(dir+"/port-0:0", "")
		tr.device(dir+"/port-0:0/expander-0:0", "")
		tr.device(dir+"/port-0:0/expander-0:0/sas_device/expander-0:0", "sas_device", "sas_address=0x500")
		dir += "/port-0:0/expander-0:0/port-0:0:3"
		tr.device(dir, "")
		tr.device(dir+"/sas_port/port-0:0:3", "sas_port", "num_phys="+c.phys)
		dir += "/end_device-0:0:3"
		tr.device(dir, "")
		tr.device(dir+"/sas_device/end_device-0:0:3", "sas_device", "sas_address=0x5000c5", "phy_identifier=11")
		tr.device(dir+"/target0:0:1", "scsi", "DEVTYPE=scsi_target")
		tr.device(dir+"/target0:0:1/0:0:1:0", "scsi", "DEVTYPE=scsi_device", "vendor=X", "model=Y")
		disk := tr.device(dir+"/target0:0:1/0:0:1:0/block/sdd", "block", "DEVTYPE=disk")
		tr.has(disk, "by-path/pci-0000:00:04.0-"+c.want)
	}
}

func TestMMC(t *testing.T) {
	tr := newTree(t)
	tr.device("platform/soc/fe340000.mmc", "platform")
	tr.device("platform/soc/fe340000.mmc/mmc_host/mmc0", "mmc_host")
	const card = "platform/soc/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa"
	tr.device(card, "mmc", "name=SC32G", "serial=0x1f2e3d4c")
	disk := tr.device(card+"/block/mmcblk0", "block", "DEVTYPE=disk")
	part := tr.device(card+"/block/mmcblk0/mmcblk0p1", "block", "DEVTYPE=partition", "partition=1")
	boot := tr.device(card+"/block/mmcblk0/mmcblk0boot1", "block", "DEVTYPE=disk")
	tr.has(disk, "by-id/mmc-SC32G_0x1f2e3d4c", "by-path/platform-fe340000.mmc")
	tr.has(part, "by-id/mmc-SC32G_0x1f2e3d4c-part1", "by-path/platform-fe340000.mmc-part1")
	tr.has(boot, "by-path/platform-fe340000.mmc-boot1")
}

func TestUnnamed(t *testing.T) {
	tr := newTree(t)
	tr.has(tr.device("virtual/block/dm-0", "block", "DEVTYPE=disk", "DISKSEQ=1"))
	tr.has(tr.device("virtual/block/loop0", "block", "DEVTYPE=disk", "DISKSEQ=2", "size=0"))
	tr.has(tr.device("virtual/block/loop1", "block", "DEVTYPE=disk", "DISKSEQ=3", "size=2048"), "by-diskseq/3")
	tr.has(tr.device("virtual/block/zram0", "block", "DEVTYPE=disk", "DISKSEQ=4", "size=2048"))
}

func TestText(t *testing.T) {
	for text, want := range map[string][2]string{
		"STATE":    {"STATE", "STATE"},
		"a b/c":    {`a\x20b\x2fc`, "a_b_c"},
		`x\y"`:     {`x\x5cy\x22`, "x_y_"},
		" é\t \n1": {`\x20é\x09\x20\x0a1`, "é_1"},
		"\xff$":    {`\xff\x24`, "__"},
		"#+-.:=@_": {"#+-.:=@_", "#+-.:=@_"},
		"":         {"", ""},
	} {
		if got := Encode(text); got != want[0] {
			t.Errorf("Encode(%q) is %s, want %s", text, got, want[0])
		}
		if got := replace(text); got != want[1] {
			t.Errorf("replace(%q) is %s, want %s", text, got, want[1])
		}
	}
}

func FuzzVitalProductData(f *testing.F) {
	for _, page := range []string{page83([3]string{"1", "3", "5000c50012345678"}, [3]string{"2", "0", "x"}), identifyPage("m", "s", 5<<60)} {
		_, data, _ := strings.Cut(page, ":")
		b, _ := hex.DecodeString(data)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		serial, wwn, ok := designator(data, "VENDOR  MODEL           ")
		if !ok && serial+wwn != "" {
			t.Errorf("%q, %q of nothing", serial, wwn)
		}
		id, _ := ataIdentity(data)
		for _, s := range []string{replace(serial), id.serial, id.wwn, Encode(string(data))} {
			if strings.ContainsAny(s, "/\x00\n ") {
				t.Errorf("%q is no name", s)
			}
		}
	})
}
