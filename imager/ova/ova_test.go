package ova

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kilnhq/kiln/imager/disktest"
	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/imager/vmdk"
	"github.com/kilnhq/kiln/internal/oracle"
)

var update = flag.Bool("update", false, "rewrite the golden descriptors")

var appliance = Package{
	Machine: Machine{Name: "kiln-1.2", Product: "Kiln <&>", Vendor: "Kiln", Version: "1.2", URL: "https://example.org/?a=1&b=2", SecureBoot: true, Hardware: 17},
	Disk:    vmdk.Options{ContentID: [16]byte{15: 7}, UUID: [16]byte{15: 9}},
	ModTime: time.Unix(1_700_000_000, 999),
}

// content is a disk of 40 MiB with some data.
func content(t testing.TB) *extent.Map {
	t.Helper()
	return disktest.Disk(t, 40<<20, disktest.At(1<<20, disktest.Noise(3<<20, 1)),
		disktest.At(20<<20+5, bytes.Repeat([]byte("text "), 50_000)), disktest.At(40<<20-1, []byte{1}))
}

func write(t testing.TB, path string, disk *extent.Map, p Package) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("what was there before", 1000)); err != nil {
		t.Fatal(err)
	}
	var progress int64
	if err := Write(t.Context(), f, disk, p, func(n int64) { progress += n }); err != nil {
		t.Fatal(err)
	}
	if progress != disk.Allocated() {
		t.Errorf("progress %d of %d", progress, disk.Allocated())
	}
}

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), oracle.Tool(t, name), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestWrite(t *testing.T) {
	for _, tool := range []string{"tar", "sha256sum", "xmllint", "qemu-img"} {
		oracle.Tool(t, tool)
	}
	dir := t.TempDir()
	disk := content(t)
	write(t, filepath.Join(dir, "out.ova"), disk, appliance)

	var list []string
	for line := range strings.Lines(run(t, dir, "tar", "-tvf", "out.ova", "--full-time")) {
		f := strings.Fields(line)
		list = append(list, strings.Join([]string{f[0], f[1], f[3], f[4], f[5]}, " "))
	}
	const when = " 2023-11-14 22:13:20 "
	want := []string{"-rw-r--r-- 0/0" + when + "kiln-1.2.ovf", "-rw-r--r-- 0/0" + when + "kiln-1.2.mf", "-rw-r--r-- 0/0" + when + "kiln-1.2-disk1.vmdk"}
	if strings.Join(list, "\n") != strings.Join(want, "\n") {
		t.Errorf("tar lists\n%s\nwant\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}
	run(t, dir, "tar", "-xf", "out.ova")
	if out := run(t, dir, "sha256sum", "--strict", "-c", "kiln-1.2.mf"); out != "kiln-1.2.ovf: OK\nkiln-1.2-disk1.vmdk: OK\n" {
		t.Errorf("sha256sum: %s", out)
	}
	run(t, dir, "xmllint", "--noout", "--nonet", "kiln-1.2.ovf")
	// What is asked for by namespace, not by prefix.
	fi, err := os.Stat(filepath.Join(dir, "kiln-1.2-disk1.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	attr := func(element, name string) string {
		return fmt.Sprintf(`string(//*[local-name()="%s" and namespace-uri()="%s"]/@*[local-name()="%s" and namespace-uri()="%s"])`, element, nsOVF, name, nsOVF)
	}
	item := func(kind int, element string) string {
		return fmt.Sprintf(`string(//*[local-name()="Item"][*[local-name()="ResourceType"]=%d]/*[local-name()="%s" and namespace-uri()="%s"])`, kind, element, nsRASD)
	}
	for xpath, want := range map[string]string{
		attr("File", "size"):     fmt.Sprint(fi.Size()),
		attr("File", "href"):     "kiln-1.2-disk1.vmdk",
		attr("Disk", "capacity"): "41943040",
		`string(//*[local-name()="VirtualSystemType" and namespace-uri()="` + nsVSSD + `"])`:                                                 "vmx-17",
		`string(//*[local-name()="Config" and namespace-uri()="` + nsVMW + `"][@*[local-name()="key"]="firmware"]/@*[local-name()="value"])`: "efi",
		`string(//*[local-name()="Product"])`: "Kiln <&>",
		item(3, "VirtualQuantity"):            "2",
		item(4, "VirtualQuantity"):            "2048",
		item(6, "ResourceSubType"):            "VirtualSCSI",
		item(17, "HostResource"):              "ovf:/disk/vmdisk1",
		item(10, "ResourceSubType"):           "VmxNet3",
	} {
		if got := strings.TrimSpace(run(t, dir, "xmllint", "--nonet", "--xpath", xpath, "kiln-1.2.ovf")); got != want {
			t.Errorf("%s is %q, want %q", xpath, got, want)
		}
	}
	f, err := os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := extent.WriteSparse(t.Context(), f, disk, nil); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "qemu-img", "check", "-f", "vmdk", "kiln-1.2-disk1.vmdk")
	run(t, dir, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", "disk.raw", "kiln-1.2-disk1.vmdk")
}

func TestSameBytes(t *testing.T) {
	dir := t.TempDir()
	disk := content(t)
	var want []byte
	for _, procs := range []int{1, 2, 5} {
		old := runtime.GOMAXPROCS(procs)
		path := filepath.Join(dir, "out.ova")
		write(t, path, disk, appliance)
		var stream bytes.Buffer
		var progress int64
		err := Stream(t.Context(), &stream, disk, appliance, func(n int64) { progress += n })
		runtime.GOMAXPROCS(old)
		if err != nil {
			t.Fatal(err)
		}
		if progress != disk.Allocated() {
			t.Errorf("progress %d of %d", progress, disk.Allocated())
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, stream.Bytes()) {
			t.Errorf("GOMAXPROCS %d: Write has %d bytes, Stream %d, or others", procs, len(got), stream.Len())
		}
		if want == nil {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Errorf("GOMAXPROCS %d: other bytes", procs)
		}
	}
}

func TestGolden(t *testing.T) {
	for name, m := range map[string]Machine{
		"defaults": {Name: "node"},
		"all": {Name: "node", Product: "Kiln", Vendor: "Someone", Version: "1", URL: "https://example.org", Hardware: 21, CPUs: 4, MemoryMiB: 4096,
			Firmware: BIOS, Controller: vmdk.LSILogic, GuestOS: "debian12_64Guest", Network: `Lab "1"`},
	} {
		m, err := m.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.descriptor(8<<30, 123_456_789)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".ovf")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s", name, got)
		}
	}
}

// TestLarge lets GNU tar read the headers of disks whose files are larger than
// ustar can say, and of names that make the descriptor end at a block.
func TestLarge(t *testing.T) {
	oracle.Tool(t, "tar")
	for n := range 64 {
		p := appliance
		p.Machine.Name = strings.Repeat("n", n+1)
		l, err := newLayout(p, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []uint64{0, 512, maxUSTAR, maxUSTAR + 1, maxDisk} {
			head, err := l.head(summary{size: size})
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(head)) != l.start {
				t.Fatalf("name of %d, file of %d bytes: it begins at %d, want %d", n+1, size, len(head), l.start)
			}
			if n > 0 || size < maxUSTAR {
				continue
			}
			path := filepath.Join(t.TempDir(), "out.ova")
			if err := os.WriteFile(path, head, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, l.start+int64(size)+tail(size)); err != nil {
				t.Fatal(err)
			}
			if out := run(t, "", "tar", "-tvf", path); !strings.Contains(out, fmt.Sprintf(" %d ", size)) {
				t.Errorf("tar lists\n%s", out)
			}
		}
	}
}

func TestRefusesMachine(t *testing.T) {
	for _, test := range []struct {
		m    Machine
		want string
	}{
		{Machine{}, `name "", want up to 80 letters, digits and any of -_.+`},
		{Machine{Name: "a/b"}, `name "a/b"`},
		{Machine{Name: ".."}, `name ".."`},
		{Machine{Name: strings.Repeat("x", 81)}, "want up to 80"},
		{Machine{Name: "m", Hardware: 14}, "virtual hardware version 14, want 15 or higher"},
		{Machine{Name: "m", CPUs: -1}, "-1 CPUs, want 1 to 128"},
		{Machine{Name: "m", MemoryMiB: 1023}, "1023 MiB of memory, want a multiple of 4 up to 6291456"},
		{Machine{Name: "m", Firmware: "coreboot"}, `firmware "coreboot", want efi or bios`},
		{Machine{Name: "m", Firmware: BIOS, SecureBoot: true}, "secure boot with firmware bios, want efi"},
		{Machine{Name: "m", Controller: vmdk.IDE}, `controller "ide", want pvscsi or lsilogic`},
		{Machine{Name: "m", Product: "a\x00"}, "cannot be in XML"},
		{Machine{Name: "m", Network: "\xff"}, "cannot be in XML"},
	} {
		err := Stream(t.Context(), io.Discard, extent.New(1<<20), Package{Machine: test.m}, nil)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	if err := Stream(t.Context(), io.Discard, extent.New(100), appliance, nil); !errors.Is(err, vmdk.ErrInvalid) {
		t.Errorf("disk of 100 bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Stream(ctx, io.Discard, content(t), appliance, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// file is a file of an archive.
type file struct {
	name    string
	content []byte
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parts returns the three files of a small OVA file.
func parts(t testing.TB) (ovf, mf, disk file) {
	t.Helper()
	m := extent.New(1 << 20)
	if err := m.PutBytes(0, []byte("start")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Stream(t.Context(), &b, m, Package{Machine: Machine{Name: "m"}}, nil); err != nil {
		t.Fatal(err)
	}
	var files []file
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files[0], files[1], files[2]
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{h.Name, p})
	}
}

func TestOpen(t *testing.T) {
	disk := content(t)
	path := filepath.Join(t.TempDir(), "out.ova")
	write(t, path, disk, appliance)
	f, err := extent.File(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if a.DiskName != "kiln-1.2-disk1.vmdk" || a.Disk.Size() != disk.Size() || !bytes.HasPrefix(a.Descriptor, []byte("<?xml ")) {
		t.Errorf("disk %q of %d bytes, descriptor %.20q", a.DiskName, a.Disk.Size(), a.Descriptor)
	}
	var got, want bytes.Buffer
	if _, err := a.Disk.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.WriteTo(&want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Error("the disk differs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestOpenForeign reads an archive of GNU tar with a disk of qemu-img, an older
// manifest, and the prefixes and order that other tools use.
func TestOpenForeign(t *testing.T) {
	for _, tool := range []string{"tar", "qemu-img"} {
		oracle.Tool(t, tool)
	}
	dir := t.TempDir()
	raw := bytes.Repeat([]byte("0123456789abcdef"), 10_000*32)
	ovf := []byte(`<?xml version="1.0"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/2"><ovf:References>
<ovf:File ovf:id="iso" ovf:href="tools.iso"/><ovf:File ovf:id="d" ovf:href="d.vmdk"/></ovf:References>
<ovf:DiskSection><ovf:Info/><ovf:Disk ovf:diskId="empty" ovf:capacity="5"/>
<ovf:Disk ovf:diskId="x" ovf:fileRef="d" ovf:capacity="1" ovf:format="http://www.vmware.com/specifications/vmdk.html#sparse"/></ovf:DiskSection>
</ovf:Envelope>`)
	put := func(name string, p []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("raw", raw)
	put("m.ovf", ovf)
	run(t, dir, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "raw", "d.vmdk")
	disk, err := os.ReadFile(filepath.Join(dir, "d.vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	put("m.mf", fmt.Appendf(nil, "SHA1 (m.ovf) = %x\r\nSHA1(d.vmdk)=%X\r\n", sha1.Sum(ovf), sha1.Sum(disk)))
	for _, format := range []string{"ustar", "gnu", "pax"} {
		run(t, dir, "tar", "--format="+format, "-cf", "out.ova", "./m.ovf", "./d.vmdk", "./m.mf")
		f, err := extent.File(filepath.Join(dir, "out.ova"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := Open(f)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		if err := a.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		var got bytes.Buffer
		if _, err := a.Disk.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), raw) {
			t.Errorf("%s: the disk differs (%v)", format, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	ovf, mf, disk := parts(t)
	without := func(f file, old, new string) file {
		p := bytes.Replace(f.content, []byte(old), []byte(new), 1)
		if bytes.Equal(p, f.content) {
			t.Fatalf("no %q in\n%s", old, f.content)
		}
		return file{f.name, p}
	}
	whole := archive(t, ovf, mf, disk)
	for _, test := range []struct {
		name    string
		content []byte
		is      error
		want    string
	}{
		{"empty", nil, ErrCorrupt, "no descriptor (*.ovf) in it"},
		{"not a tar", bytes.Repeat([]byte("x"), 2000), ErrCorrupt, "invalid tar header"},
		{"cut off", whole[:len(whole)-3000], ErrCorrupt, `"m-disk1.vmdk" is cut off`},
		{"two descriptors", archive(t, ovf, file{"n.ovf", nil}), ErrCorrupt, `two descriptors, "m.ovf" and "n.ovf"`},
		{"two disks", archive(t, disk, disk), ErrCorrupt, `two files "m-disk1.vmdk"`},
		{"no disk", archive(t, ovf), ErrCorrupt, `"m-disk1.vmdk" is not in the archive`},
		{"descriptor changed", archive(t, without(ovf, "vmx-15", "vmx-16"), mf, disk), ErrCorrupt, `"m.ovf" has SHA256 `},
		{"manifest", archive(t, ovf, without(mf, "SHA256(", "SHA256 ["), disk), ErrCorrupt, `line "SHA256 [m.ovf)= `},
		{"short digest", archive(t, ovf, without(mf, "(m.ovf)= ", "(m.ovf)= 00"), disk), ErrCorrupt, `line "SHA256(m.ovf)= 00`},
		{"algorithm", archive(t, ovf, without(mf, "SHA256", "MD5"), disk), ErrUnsupported, `a digest of "MD5" in the manifest`},
		{"manifest of another", archive(t, ovf, without(mf, "disk1", "disk2"), disk), ErrCorrupt, `the manifest has "m-disk2.vmdk", the archive has not`},
		{"not XML", archive(t, file{"m.ovf", []byte("<")}, disk), ErrCorrupt, "descriptor: "},
		{"namespace", archive(t, without(ovf, `xmlns="http://schemas.dmtf.org`, `xmlns="http://example.org`), disk), ErrUnsupported, "want OVF 1 or 2"},
		{"format", archive(t, without(ovf, formatVMDK, "http://example.org/vhd"), disk), ErrUnsupported, `has format "http://example.org/vhd", want VMDK`},
		{"size", archive(t, without(ovf, "ovf:size=\"", "ovf:size=\"1"), disk), ErrCorrupt, "bytes, the descriptor has 1"},
		{"compressed", archive(t, without(ovf, "<File", `<File ovf:compression="gzip"`), disk), ErrUnsupported, `compressed ("gzip")`},
		{"chunks", archive(t, without(ovf, "<File", `<File ovf:chunkSize="1"`), disk), ErrUnsupported, "is in chunks"},
		{"parent", archive(t, without(ovf, "<Disk ", `<Disk ovf:parentRef="x" `), disk), ErrUnsupported, `disk "vmdisk1" has a parent`},
		{"unknown file", archive(t, without(ovf, `fileRef="file1"`, `fileRef="file2"`), disk), ErrCorrupt, `is in file "file2", of which nothing is known`},
		{"diskless", archive(t, without(ovf, `ovf:fileRef="file1"`, ""), disk), ErrUnsupported, "no disk in it"},
		{"more disks", archive(t, without(ovf, "<Disk ", `<Disk ovf:fileRef="file1" ovf:format="vmdk"/><Disk `), disk), ErrUnsupported, "more than one disk"},
		{"disk's format", archive(t, ovf, file{disk.name, make([]byte, len(disk.content))}), vmdk.ErrCorrupt, "m-disk1.vmdk: damaged vmdk image"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Open(extent.Bytes(test.content))
			if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	first, _, _ := bytes.Cut(mf.content, []byte("\n"))
	for _, test := range []struct {
		name    string
		content []byte
		is      error
		want    string
	}{
		{"disk changed", archive(t, ovf, mf, without(disk, "2147483647", "2147483646")), ErrCorrupt, `"m-disk1.vmdk" has SHA256 `},
		{"no manifest", archive(t, ovf, disk), ErrUnsupported, "there is no manifest to verify it with"},
		{"disk without digest", archive(t, ovf, file{"m.mf", first}, disk), ErrCorrupt, `the manifest does not have "m-disk1.vmdk"`},
	} {
		a, err := Open(extent.Bytes(test.content))
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if err := a.Verify(t.Context()); !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	ovf, mf, disk := parts(f)
	f.Add(archive(f, ovf, mf, file{disk.name, disk.content[:1<<10]}), []byte{}, []byte{})
	f.Add([]byte{}, ovf.content, mf.content)
	f.Fuzz(func(t *testing.T, whole, descriptor, manifest []byte) {
		if len(whole) == 0 {
			whole = archive(t, file{ovf.name, descriptor}, file{mf.name, manifest}, disk)
		}
		a, err := Open(extent.Bytes(whole))
		if err != nil {
			return
		}
		a.Verify(t.Context())
		a.Disk.ReadAt(make([]byte, 1000), 0)
	})
}
