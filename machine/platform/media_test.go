package platform

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/platform/vmware"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// firmware has tables with a serial number and a UUID.
func firmware(serial string) fs.FS {
	guid := "\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
	text := "x\x00" + serial + "\x00"
	number := "\x02"
	if serial == "" {
		text, number = "x\x00", "\x00"
	}
	return fstest.MapFS{
		"dmi/tables/DMI":                {Data: []byte("\x01\x18\x01\x00\x01\x01\x00" + number + guid + text + "\x00")},
		"dmi/tables/smbios_entry_point": {Data: []byte("_SM3_\x00\x18\x03\x00")},
	}
}

// disk makes a volume of these files: "iso" or "vfat".
func disk(t *testing.T, kind, label string, files map[string]string) volume.Device {
	t.Helper()
	dir, name := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for file, text := range files {
		file = filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, file, text)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(oracle.Tool(t, name), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if kind == "iso" {
		run("xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-V", label, "-o", name, dir)
	} else {
		run("mkfs.vfat", "-C", "-n", label, name, "4096")
		entries, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		run("mcopy", append([]string{"-s", "-i", name}, append(entries, "::/")...)...)
	}
	return device(t, name)
}

func device(t *testing.T, name string) volume.Device {
	t.Helper()
	fi, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return volume.Device{Path: "/dev/sr0", CD: true, Size: fi.Size(), Open: func() (volume.File, error) { return os.Open(name) }}
}

// unpacked is a disk of testdata of another package, which is compressed.
func unpacked(t *testing.T, name string) volume.Device {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "image")
	write(t, to, string(data))
	return device(t, to)
}

func TestMedia(t *testing.T) {
	const ovfProperty = `<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1">
		<PropertySection><Property oe:key="kiln.config" oe:value="%s"/></PropertySection></Environment>`
	network := []byte("version: 2\n")
	for _, c := range []struct {
		name, platform string
		kind, label    string
		files          map[string]string
		args           []string
		serial         string
		vars           map[string]string
		source         string
		failed         int
		want           *Metadata
	}{
		{
			name: "seed on a CD", platform: "nocloud", kind: "iso", label: "cidata", source: "nocloud volume",
			files: map[string]string{"user-data": config, "meta-data": "instance-id: iid-1\nlocal-hostname: n1\n", "network-config": "version: 2\n"},
			want:  &Metadata{Hostname: "n1", InstanceID: "iid-1", Network: network},
		},
		{
			name: "seed on a disk, name in the serial number", platform: "nocloud", kind: "vfat", label: "CIDATA", source: "nocloud volume",
			files: map[string]string{"user-data": config}, serial: "ds=nocloud;h=n2;i=iid-2",
			want: &Metadata{Hostname: "n2", InstanceID: "iid-2"},
		},
		{
			name: "no seed, name in the serial number", platform: "nocloud", serial: "ds=nocloud;h=n2",
			want: &Metadata{Hostname: "n2"},
		},
		{
			name: "empty user-data", platform: "nocloud", kind: "iso", label: "cidata",
			files: map[string]string{"user-data": "", "meta-data": ""}, want: &Metadata{},
		},
		{name: "no seed", platform: "nocloud", serial: "VMware-42"},
		{name: "an argument", platform: "metal", kind: "iso", label: "metal-iso", files: map[string]string{"config.yaml": config}, args: []string{"kiln.config=metal-iso"}, source: ArgConfig},
		{name: "an argument, FAT", platform: "metal", kind: "vfat", label: "METAL-ISO", files: map[string]string{"config.yaml": zipped(t, config)}, args: []string{"kiln.config=metal-iso"}, source: ArgConfig},
		{name: "an argument, no volume", platform: "metal", args: []string{"kiln.config=metal-iso"}},
		{
			name: "config drive", platform: "openstack", kind: "iso", label: "config-2", source: "openstack config drive",
			files: map[string]string{
				"openstack/latest/user_data": config, "openstack/latest/network_data.json": "{}",
				"openstack/latest/meta_data.json": `{"uuid":"u","name":"os-2","availability_zone":"nova"}`,
			},
			want: &Metadata{Hostname: "os-2", InstanceID: "u", Zone: "nova", Network: []byte("{}")},
		},
		{
			name: "config drive of CloudStack", platform: "cloudstack", kind: "vfat", label: "CONFIG-2", source: "cloudstack config drive",
			files: map[string]string{
				"cloudstack/userdata/user_data.txt": config, "cloudstack/metadata/instance-id.txt": "c\n", "cloudstack/metadata/local-hostname.txt": "c-2",
				"cloudstack/metadata/availability-zone.txt": "z", "cloudstack/metadata/local-ipv4.txt": "10.0.0.9", "cloudstack/metadata/public-ipv4.txt": "",
			},
			want: &Metadata{Hostname: "c-2", InstanceID: "c", Zone: "z", Private: addrs("10.0.0.9")},
		},
		{
			name: "context", platform: "opennebula", kind: "iso", label: "CONTEXT", source: "opennebula context",
			files: map[string]string{"context.sh": "USER_DATA='" + encoded(config) + "'\nUSERDATA_ENCODING='base64'\nNAME='one-1'\nVMID='7'\nETH0_IP='10.0.0.8'\n"},
			want:  &Metadata{Hostname: "one-1", InstanceID: "7", Private: addrs("10.0.0.8")},
		},
		{
			name: "context, plain", platform: "opennebula", kind: "vfat", label: "CONTEXT", source: "opennebula context",
			files: map[string]string{"context.sh": "USER_DATA='" + config + "'\nSET_HOSTNAME='one-2'\n"},
			want:  &Metadata{Hostname: "one-2"},
		},
		{name: "context without user data", platform: "opennebula", kind: "iso", label: "CONTEXT", files: map[string]string{"context.sh": "\n"}, want: &Metadata{}},
		{
			name: "guestinfo", platform: "vmware", source: "vmware",
			vars: map[string]string{
				"guestinfo.kiln.config": encoded(zipped(t, config)), "guestinfo.kiln.config.encoding": "gzip+base64",
				"guestinfo.metadata": encoded("local-hostname: vm-1\ninstance-id: vm\n"), "guestinfo.metadata.encoding": "base64",
			},
			want: &Metadata{Hostname: "vm-1", InstanceID: "vm", Network: []byte("local-hostname: vm-1\ninstance-id: vm\n")},
		},
		{name: "guestinfo, plain", platform: "vmware", source: "vmware", vars: map[string]string{"guestinfo.userdata": config}},
		{name: "guestinfo, OVF", platform: "vmware", source: "vmware", vars: map[string]string{"guestinfo.ovfEnv": fmt.Sprintf(ovfProperty, encoded(config))}},
		{name: "guestinfo, nothing", platform: "vmware", vars: map[string]string{}},
		{name: "no machine of VMware", platform: "vmware"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := machine(t, newNetwork(t), c.args...)
			env.Firmware = firmware(c.serial)
			if c.kind != "" {
				d := disk(t, c.kind, c.label, c.files)
				env.Devices = func() ([]volume.Device, error) { return []volume.Device{d}, nil }
			}
			if c.vars != nil {
				env.Hypervisor = func() (vmware.Port, error) { return &guest{vars: c.vars}, nil }
			}
			p := New(c.platform, env)
			if c.platform == "openstack" || c.platform == "cloudstack" {
				p.Sources = p.Sources[:3] // not the service
			}
			r, err := quick().Acquire(t.Context(), p.Sources)
			if c.source == "" {
				if err != ErrNone {
					t.Errorf("found %v, %v, want ErrNone", r, err)
				}
			} else if err != nil || string(r.Data) != config || r.Source != c.source || len(r.Failed) != c.failed {
				t.Errorf("found %+v, %v", r, err)
			}
			if c.want == nil {
				return
			}
			m, err := quick().Metadata(t.Context(), p)
			if err != nil || !reflect.DeepEqual(m, c.want) {
				t.Errorf("metadata %+v, %v, want %+v", m, err, c.want)
			}
		})
	}
}

// TestMediaFaults is media that are there and no good.
func TestMediaFaults(t *testing.T) {
	const failed = "no machine configuration can be used:\n  "
	for _, c := range []struct {
		name, platform, label string
		files                 map[string]string
		serial                string
		vars                  map[string]string
		want                  string
	}{
		{name: "cloud-init", platform: "nocloud", label: "cidata", files: map[string]string{"user-data": "#cloud-config\n"},
			want: failed + "nocloud volume: found a cloud-init configuration (#cloud-config); want the YAML of 'kiln config generate'"},
		{name: "huge", platform: "nocloud", label: "cidata", files: map[string]string{"user-data": strings.Repeat("#", MaxSize+1)},
			want: failed + "nocloud volume: read /dev/sr0:user-data: the file has 1048577 bytes, want at most 1048576"},
		{name: "serial number", platform: "nocloud", serial: "ds=nocloud;s=/dev/sda",
			want: failed + `nocloud: NoCloud: found the seed's address "/dev/sda"; want an http or https URL`},
		{name: "context", platform: "opennebula", label: "CONTEXT", files: map[string]string{"context.sh": "reboot\n"},
			want: failed + `opennebula context: context.sh:1: found "reboot", want NAME='value'`},
		{name: "context, base64", platform: "opennebula", label: "CONTEXT", files: map[string]string{"context.sh": "USERDATA='!'\nUSERDATA_ENCODING='base64'\n"},
			want: failed + "opennebula context: context.sh: USERDATA: want base64: illegal base64 data at input byte 0"},
		{name: "guestinfo, encoding", platform: "vmware", vars: map[string]string{"guestinfo.kiln.config": "x", "guestinfo.kiln.config.encoding": "rot13"},
			want: failed + `vmware: guestinfo.kiln.config.encoding: found "rot13", want base64 or gzip+base64`},
		{name: "guestinfo, base64", platform: "vmware", vars: map[string]string{"guestinfo.kiln.config": "!", "guestinfo.kiln.config.encoding": "base64"},
			want: failed + "vmware: guestinfo.kiln.config: want base64: illegal base64 data at input byte 0"},
		{name: "OVF", platform: "vmware", vars: map[string]string{"guestinfo.ovfEnv": "<Environment>"},
			want: failed + "vmware: guestinfo.ovfEnv: OVF environment: XML syntax error on line 1: unexpected EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			env := machine(t, newNetwork(t))
			env.Firmware = firmware(c.serial)
			if c.label != "" {
				d := disk(t, "iso", c.label, c.files)
				env.Devices = func() ([]volume.Device, error) { return []volume.Device{d}, nil }
			}
			if c.vars != nil {
				env.Hypervisor = func() (vmware.Port, error) { return &guest{vars: c.vars}, nil }
			}
			_, err := quick().Acquire(t.Context(), New(c.platform, env).Sources)
			wantError(t, err, c.want)
		})
	}
}

// TestSeed is a NoCloud seed on a server that the serial number, or an argument,
// names.
func TestSeed(t *testing.T) {
	for _, c := range []struct{ name, serial, arg string }{
		{"serial number", "ds=nocloud;s=http://seed.test/n1;h=n1", "quiet"},
		{"argument", "", "ds=nocloud-net;s=http://seed.test/n1/;h=n1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				defer n.close()
				n.serve("seed.test:80", &strict{host: "seed.test", docs: map[string]string{
					"/n1/user-data": config, "/n1/meta-data": "instance-id: i-1\nlocal-hostname: other\n",
				}})
				env := machine(t, n, c.arg)
				env.Firmware = firmware(c.serial)
				p := New("nocloud", env)
				r, err := quick().Acquire(t.Context(), p.Sources)
				if err != nil || string(r.Data) != config || r.Source != "nocloud" {
					t.Errorf("found %v, %v", r, err)
				}
				m, err := quick().Metadata(t.Context(), p)
				if err != nil || m.Hostname != "n1" || m.InstanceID != "i-1" {
					t.Errorf("metadata %+v, %v", m, err)
				}
			})
		})
	}
}

func TestAzureMedium(t *testing.T) {
	env := machine(t, newNetwork(t))
	noise, medium := disk(t, "iso", "any", map[string]string{"x": "y"}), unpacked(t, "udf/testdata/genisoimage.iso.gz")
	env.Devices = func() ([]volume.Device, error) { return []volume.Device{noise, medium}, nil }
	r, err := quick().Acquire(t.Context(), New("azure", env).Sources)
	if err != nil || string(r.Data) != config || r.Source != "azure provisioning medium" {
		t.Errorf("found %+v, %v", r, err)
	}
}

// wire is Azure's wire server.
type wire struct {
	t     *testing.T
	ready int
	goal  string
}

func (s *wire) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("x-ms-version") == "" || r.URL.Path != "/machine/" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	switch r.Method + " " + r.URL.RawQuery {
	case "GET comp=goalstate":
		_, _ = io.WriteString(w, s.goal)
	case "POST comp=health":
		var h struct {
			XMLName     xml.Name `xml:"Health"`
			Incarnation string   `xml:"GoalStateIncarnation"`
			Container   struct {
				ID   string `xml:"ContainerId"`
				Role struct {
					ID    string `xml:"InstanceId"`
					State string `xml:"Health>State"`
				} `xml:"RoleInstanceList>Role"`
			} `xml:"Container"`
		}
		err := xml.NewDecoder(r.Body).Decode(&h)
		if err != nil || h.Incarnation != "3" || h.Container.ID != "c-7" || h.Container.Role.ID != "i-8" || h.Container.Role.State != "Ready" ||
			!strings.HasPrefix(r.Header.Get("Content-Type"), "text/xml") {
			s.t.Errorf("report %+v, %v", h, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.ready++
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func TestAzureReady(t *testing.T) {
	const goal = `<?xml version="1.0" encoding="utf-8"?><GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
		<Version>2015-04-05</Version><Incarnation>3</Incarnation><Machine><ExpectedState>Started</ExpectedState></Machine>
		<Container><ContainerId>c-7</ContainerId><RoleInstanceList><RoleInstance><InstanceId>i-8</InstanceId><State>Started</State></RoleInstance></RoleInstanceList></Container></GoalState>`
	for _, c := range []struct{ goal, want string }{
		{goal, ""},
		{"<GoalState/>", "GET http://168.63.129.16/machine/: want a GoalState with Incarnation, ContainerId and InstanceId"},
		{"<html>", "GET http://168.63.129.16/machine/: want a GoalState with Incarnation, ContainerId and InstanceId"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			defer n.close()
			s := &wire{t: t, goal: c.goal}
			n.serve("168.63.129.16:80", s)
			err := quick().Ready(t.Context(), New("azure", machine(t, n)))
			if c.want != "" {
				wantError(t, err, c.want)
			} else if err != nil || s.ready != 1 {
				t.Errorf("reported %d times, %v", s.ready, err)
			}
		})
	}
}

// A guest is a machine of VMware, as far as it takes to answer info-get; that the
// protocol is kept to is tested in package vmware.
type guest struct {
	vars            map[string]string
	request, answer []byte
	left            int
}

func (g *guest) In(r *vmware.Registers) {
	step := r.CX >> 16
	r.CX = 1<<16 | r.CX&0xffff
	switch step {
	case 0:
		g.request = nil
	case 1:
		g.left = int(r.BX)
	case 2:
		b := binary.LittleEndian.AppendUint32(nil, r.BX)
		n := min(g.left, 4)
		g.request, g.left = append(g.request, b[:n]...), g.left-n
	case 3:
		g.answer = []byte("0 No value found")
		if v, ok := g.vars[string(bytes.TrimPrefix(g.request, []byte("info-get ")))]; ok {
			g.answer = []byte("1 " + v)
		}
		r.CX |= 2 << 16
		r.BX, r.DX = uint32(len(g.answer)), 1<<16
	case 4:
		var b [4]byte
		g.answer = g.answer[copy(b[:], g.answer):]
		r.BX, r.DX = binary.LittleEndian.Uint32(b[:]), 2<<16
	}
}
