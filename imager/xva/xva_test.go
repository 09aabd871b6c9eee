package xva

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
)

const mib = 1 << 20

func machine() Machine {
	return Machine{
		Name: "kiln <xen> & \"co\"", Description: "an image", ID: [16]byte{1, 2, 3}, CPUs: 2, Memory: 1 << 30,
		Time: time.Unix(1_700_000_000, 0),
	}
}

func disks(t testing.TB) map[string]*extent.Map {
	return map[string]*extent.Map{
		"a hole":      disktest.Disk(t, 5*mib),
		"a sector":    disktest.Disk(t, 512, disktest.At(0, disktest.Noise(512, 1))),
		"full":        disktest.Disk(t, 3*mib, disktest.At(0, disktest.Noise(3*mib, 2))),
		"odd end":     disktest.Disk(t, 3*mib+1536, disktest.At(2*mib+5, disktest.Noise(9, 3))),
		"zeros":       disktest.Disk(t, 9*mib, disktest.At(mib, make([]byte, 3*mib)), disktest.At(4*mib-512+mib, disktest.Noise(1024, 4))),
		"shared":      disktest.Disk(t, 4*mib, disktest.At(mib, disktest.Noise(100, 5)), disktest.At(mib+1000, disktest.Noise(100, 6)), disktest.At(2*mib-1, disktest.Noise(2, 7))),
		"far":         disktest.Disk(t, 300*mib, disktest.At(211*mib, disktest.Noise(mib, 8))),
		"end of data": disktest.Disk(t, 8*mib, disktest.At(7*mib-1, disktest.Noise(mib, 9))),
	}
}

func write(t testing.TB, m *extent.Map, machine Machine) []byte {
	t.Helper()
	var out bytes.Buffer
	var told int64
	if err := Write(context.Background(), &out, m, machine, func(n int64) { told += n }); err != nil {
		t.Fatal(err)
	}
	if told != m.Size() {
		t.Errorf("progress told of %d bytes, want %d", told, m.Size())
	}
	return out.Bytes()
}

// xva-img compares the checksums.
func TestXVAImgUnpacks(t *testing.T) {
	img := oracle.Tool(t, "xva-img")
	for name, m := range disks(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.Command(oracle.Tool(t, "tar"), "-xf", "-", "-C", dir)
			cmd.Stdin = bytes.NewReader(write(t, m, machine()))
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Fatalf("%v: %s", err, out)
			}
			raw := filepath.Join(dir, "disk.raw")
			if out, err := exec.Command(img, "disk-export", filepath.Join(dir, refVDI), raw).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := extent.File(raw)
			if err != nil {
				t.Fatal(err)
			}
			disktest.Same(t, got, m)
		})
	}
}

// The other way round: what xva-img makes of a disk.
func TestOpenXVAImg(t *testing.T) {
	img := oracle.Tool(t, "xva-img")
	dir := t.TempDir()
	m := disks(t)["far"]
	vm := machine()
	if err := os.WriteFile(filepath.Join(dir, descriptorName), vm.descriptor(m.Size()), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(context.Background(), f, m, nil); err != nil {
		t.Fatal(err)
	}
	ref := filepath.Join(dir, refVDI)
	if err := os.Mkdir(ref, 0o755); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "vm.xva")
	for _, args := range [][]string{
		{"disk-import", ref, f.Name()},
		{"package", out, filepath.Join(dir, descriptorName), ref + "/"},
	} {
		if out, err := exec.Command(img, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	src, err := extent.File(out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(src)
	if err != nil {
		t.Fatal(err)
	}
	disktest.Same(t, got, m)
}

func TestOpen(t *testing.T) {
	for name, m := range disks(t) {
		t.Run(name, func(t *testing.T) {
			b := write(t, m, machine())
			got, err := Open(extent.Bytes(b))
			if err != nil {
				t.Fatal(err)
			}
			disktest.Same(t, got, m)
			if most := int64(len(m.Extents())+4) * 2 * mib; got.Allocated() > max(most, m.Allocated()) {
				t.Errorf("%d bytes are allocated of %d", got.Allocated(), m.Allocated())
			}
		})
	}
}

// The order and the names that xapi's stream_vdi.ml wants: a chunk, its checksum,
// chunks in ascending order, the first and the last always.
func TestChunks(t *testing.T) {
	m := disktest.Disk(t, 12*mib+512, disktest.At(2*mib, make([]byte, mib)), disktest.At(5*mib+100, disktest.Noise(mib, 1)), disktest.At(11*mib, disktest.Noise(1, 2)))
	r := tar.NewReader(bytes.NewReader(write(t, m, machine())))
	var got []string
	var last []byte
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Format != tar.FormatUSTAR || h.ModTime.Unix() != machine().Time.Unix() || h.Uid != 0 {
			t.Errorf("%s: %v %v", h.Name, h.Format, h.ModTime)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, checksumSuffix) {
			if sum := sha1.Sum(last); string(b) != hex.EncodeToString(sum[:]) {
				t.Errorf("%s: %s, want %x", h.Name, b, sum)
			}
		}
		last = b
		got = append(got, h.Name)
	}
	want := []string{descriptorName}
	for _, n := range []string{"00", "05", "06", "11", "12"} {
		want = append(want, "Ref:4/000000"+n, "Ref:4/000000"+n+".checksum")
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(last) != 40 {
		t.Errorf("a checksum of %d characters", len(last))
	}
}

// The bytes do not depend on the extents, the time zone and the processors.
func TestSameBytes(t *testing.T) {
	m := disks(t)["zeros"]
	var whole bytes.Buffer
	if _, err := m.WriteTo(&whole); err != nil {
		t.Fatal(err)
	}
	want := write(t, m, machine())
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	other := machine()
	other.Time = other.Time.In(time.FixedZone("far", 14*3600))
	if got := write(t, disktest.Disk(t, m.Size(), disktest.At(0, whole.Bytes())), other); !bytes.Equal(got, want) {
		t.Error("other bytes")
	}
}

// ova.xml as a stranger parses it, and every reference in it leads somewhere.
func TestDescriptor(t *testing.T) {
	for _, uefi := range []bool{false, true} {
		m := machine()
		m.UEFI = uefi
		b := m.descriptor(7 * mib)
		root, err := readValue(xml.NewDecoder(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		objects := map[string]*value{}
		for _, o := range root.get("objects").array {
			objects[o.get("id").text] = o.get("snapshot")
			if id := o.get("snapshot").get("uuid").text; len(id) != 36 {
				t.Errorf("%s has the UUID %q", o.get("class").text, id)
			}
		}
		for ref, o := range objects {
			for name, v := range o.fields {
				for _, r := range append(v.array, v) {
					if strings.HasPrefix(r.text, "Ref:") && objects[r.text] == nil {
						t.Errorf("%s: %s is %s, which is not there", ref, name, r.text)
					}
				}
			}
		}
		vm := objects[refVM]
		for name, want := range map[string]string{
			"name_label": m.Name, "memory_static_max": "1073741824", "memory_dynamic_min": "1073741824", "VCPUs_max": "2",
			"HVM_boot_policy": "BIOS order", "HVM_shadow_multiplier": "1", "is_a_template": "0", "parent": refNone,
		} {
			if got := vm.get(name).text; got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		firmware, model := "", ""
		if uefi {
			firmware, model = "uefi", "qemu-upstream-uefi"
		}
		if got := vm.get("HVM_boot_params").get("firmware").text; got != firmware {
			t.Errorf("firmware %q, want %q", got, firmware)
		}
		if got := vm.get("platform").get("device-model").text; got != model {
			t.Errorf("device model %q, want %q", got, model)
		}
		if got := objects[refVDI].get("virtual_size").text; got != "7340032" {
			t.Errorf("size %q", got)
		}
		if got := root.get("version").get("export_vsn").text; got != "2" {
			t.Errorf("export_vsn %q", got)
		}
		// Booleans and numbers as xapi wants them.
		for _, want := range []string{
			"<name>bootable</name><value><boolean>1</boolean></value>", "<name>domid</name><value>-1</value>",
			"<name>HVM_shadow_multiplier</name><value><double>1</double></value>",
			"<name>platform</name><value><struct><member>", "<name>consoles</name><value><array><data></data></array></value>",
		} {
			if !bytes.Contains(b, []byte(want)) {
				t.Errorf("no %s", want)
			}
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, c := range []struct {
		change func(*Machine)
		size   int64
		want   string
	}{
		{func(m *Machine) { m.Name = "" }, mib, "it has no name"},
		{func(m *Machine) { m.CPUs = 0 }, mib, "it has 0 CPUs, want 1 at least"},
		{func(m *Machine) { m.Memory = 1000 }, mib, "it has 1000 bytes of memory, want a multiple of 1 MiB, 16 MiB at least"},
		{func(*Machine) {}, 1000, "its disk has 1000 bytes, want a multiple of 512 up to 104857600000000"},
		{func(*Machine) {}, 100_000_001 * mib, "its disk has 104857601048576 bytes, want a multiple of 512 up to 104857600000000"},
	} {
		m := machine()
		c.change(&m)
		err := Write(context.Background(), io.Discard, extent.New(c.size), m, nil)
		if want := ErrInvalid.Error() + ": " + c.want; !errors.Is(err, ErrInvalid) || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

type failing struct{ extent.Source }

var errFailing = errors.New("disk on fire")

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errFailing }
func (failing) Size() int64                       { return 10 * mib }

type full struct{}

var errFull = errors.New("disk full")

func (full) Write(p []byte) (int, error) {
	if len(p) == mib {
		return 0, errFull
	}
	return len(p), nil
}

func TestErrorsAndCancel(t *testing.T) {
	m := extent.New(20 * mib)
	if err := m.Put(mib, failing{}); err != nil {
		t.Fatal(err)
	}
	if err := Write(context.Background(), io.Discard, m, machine(), nil); !errors.Is(err, errFailing) {
		t.Errorf("%v, want %v", err, errFailing)
	}
	if err := Write(context.Background(), full{}, disks(t)["full"], machine(), nil); !errors.Is(err, errFull) {
		t.Errorf("%v, want %v", err, errFull)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := Write(ctx, io.Discard, disktest.Disk(t, 64*mib, disktest.At(0, disktest.Noise(64*mib, 1))), machine(), func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// files is a tar archive with these, in pairs of a name and a content.
func files(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	a := archive{tar: tar.NewWriter(&b), time: time.Unix(0, 0)}
	for i := 0; i < len(pairs); i += 2 {
		if err := a.file(pairs[i], []byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.tar.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDamage(t *testing.T) {
	m := machine()
	good := string(m.descriptor(3000))
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"other file", files(t, "disk.raw", "x"), `begins with "disk.raw" of 1 bytes, want "ova.xml"`},
		{"no xml", files(t, "ova.xml", ""), "ova.xml: EOF"},
		{"html", files(t, "ova.xml", "<html></html>"), "ova.xml: begins with <html>, want <value>"},
		{"no disk", files(t, "ova.xml", "<value><struct></struct></value>"), "ova.xml: the machine has no disk"},
		{"deep", files(t, "ova.xml", strings.Repeat("<value>", 100)), "ova.xml: values in values, more than 64"},
		{"size", files(t, "ova.xml", strings.Replace(good, ">3000<", ">-3<", 1)), `ova.xml: disk Ref:4 has a size of "-3" bytes`},
		{"no chunk", files(t, "ova.xml", good), "the first chunk of Ref:4 is not in it"},
		{"far", files(t, "ova.xml", good, "Ref:4/00000000", "0123456789", "Ref:4/00000400", "x"), `chunk "Ref:4/00000400" of 1 bytes, the first has 10 and the disk 3000`},
		{"large", files(t, "ova.xml", good, "Ref:4/00000000", "0123", "Ref:4/00000002", "01234"), `chunk "Ref:4/00000002" of 5 bytes, the first has 4 and the disk 3000`},
		{"name", files(t, "ova.xml", good, "Ref:4/00000000", "0123", "Ref:4/etc", "012"), `chunk "Ref:4/etc" of 3 bytes, the first has 4 and the disk 3000`},
		{"twice", files(t, "ova.xml", good, "Ref:4/00000000", "0123", "Ref:4/00000000", "0123"), `chunk "Ref:4/00000000": extents overlap: [0, 4) and [0, 4)`},
	} {
		_, err := Open(extent.Bytes(c.b))
		if want := ErrCorrupt.Error() + ": " + c.want; !errors.Is(err, ErrCorrupt) || err.Error() != want {
			t.Errorf("%s: %v, want %s", c.name, err, want)
		}
	}
	whole := write(t, disks(t)["full"], m)
	if _, err := Open(extent.Bytes(whole[:2*mib])); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	m := machine()
	f.Add(files(f, "ova.xml", string(m.descriptor(3000)), "Ref:4/00000000", "0123456789", "Ref:4/00000000.checksum", "x", "Ref:4/00000002", "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Open(extent.Bytes(b))
		if err != nil {
			return
		}
		for _, x := range m.Extents() {
			if x.Offset < 0 || x.End() > m.Size() {
				t.Errorf("extent [%d, %d) in %d", x.Offset, x.End(), m.Size())
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	m := disktest.Disk(b, 256*mib, disktest.At(3*mib, disktest.Noise(128*mib, 1)))
	b.SetBytes(m.Allocated())
	for b.Loop() {
		if err := Write(context.Background(), io.Discard, m, machine(), nil); err != nil {
			b.Fatal(err)
		}
	}
}
