package blockdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(oracle.Tool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sparse makes a file of size zeros.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func put(t *testing.T, file string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

// inspected resolves and inspects a file on a machine without devices.
func inspected(t *testing.T, file string) *Device {
	t.Helper()
	h := newTree(t)
	d, err := h.Resolve(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Inspect(d); err != nil {
		t.Fatal(err)
	}
	return d
}

// mkfs makes an ext4 of n MiB at off MiB in a file.
func mkfs(t *testing.T, file string, off, n int64) {
	t.Helper()
	run(t, "mkfs.ext4", "-q", "-L", "STATE", "-E", fmt.Sprintf("offset=%d", off<<20), file, fmt.Sprintf("%dM", n))
}

func TestEmpty(t *testing.T) {
	d := inspected(t, sparse(t, 10<<20))
	if err := d.Check(10 << 20); err != nil {
		t.Error(err)
	}
	if err := d.Occupied(); err != nil {
		t.Error(err)
	}
	if d.Fingerprint.Size != 10<<20 || d.Fingerprint.DiskSeq != 0 || d.Fingerprint.Ends != zeros(10<<20) {
		t.Errorf("got %+v", d.Fingerprint)
	}
}

// TestOccupied makes disks with the tools that people use.
func TestOccupied(t *testing.T) {
	oracle.Tool(t, "mkfs.ext4")
	for _, c := range []struct {
		name string
		make func(t *testing.T, file string)
		want string
	}{
		{"gpt", func(t *testing.T, f string) {
			run(t, "sgdisk", "-a", "1", "-n", "1:34:2047", "-c", "1:BIOS boot", "-t", "1:ef02", "-n", "5:1M:+4M", "-c", "5:STATE", "-n", "6:6M:+2M", f)
			mkfs(t, f, 1, 4)
		}, `a GPT with 3 partitions: 1 BIOS boot, 5 STATE (ext4), 6`},
		{"ext4", func(t *testing.T, f string) { mkfs(t, f, 0, 16) }, `ext4 "STATE"`},
		{"swap", func(t *testing.T, f string) { run(t, "mkswap", "-q", "-L", "sw", f) }, `swap "sw"`},
		{"mbr", func(t *testing.T, f string) {
			sfdisk(t, f, "label: dos\nstart=2048,size=2048,type=83\nsize=8192,type=5\nstart=6144,size=2048\nstart=10240,size=1024\n")
			mkfs(t, f, 1, 1)
		}, `an MBR with 4 partitions: 1 (ext4 "STATE"), 2, 5, 6`},
		{"damaged gpt", func(t *testing.T, f string) {
			run(t, "sgdisk", "-n", "1:2048:+1M", f)
			put(t, f, 512+16, []byte{1})
		}, "a GPT that is damaged with 1 partition: 1"},
		{"ruined gpt", func(t *testing.T, f string) {
			run(t, "sgdisk", "-n", "1:2048:+1M", f)
			put(t, f, 512+16, []byte{1})
			put(t, f, 16<<20-512+16, []byte{1})
		}, "a GPT that is damaged without partitions"},
		{"fat", func(t *testing.T, f string) { run(t, "mkfs.vfat", "-n", "STICK", f) }, `vfat "STICK"`},
		{"first MiB", func(t *testing.T, f string) { put(t, f, 1<<20-1, []byte{1}) }, "data of an unknown kind"},
		{"last MiB", func(t *testing.T, f string) { put(t, f, 15<<20, []byte{1}) }, "data of an unknown kind"},
		{"both", func(t *testing.T, f string) {
			run(t, "sgdisk", "-n", "1:2048:+1M", f)
			put(t, f, 65536+64, []byte("_BHRfS_M"))
		}, "btrfs and a GPT with 1 partition: 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := sparse(t, 16<<20)
			c.make(t, file)
			d := inspected(t, file)
			err := d.Occupied()
			if want := file + ": not empty: it holds " + c.want + "; use --force to overwrite it"; err == nil || err.Error() != want {
				t.Fatalf("got  %v\nwant %s", err, want)
			}
			if !errors.Is(err, ErrOccupied) || !errors.Is(err, ErrRefused) {
				t.Error("not ErrOccupied or not ErrRefused")
			}
			if err := d.Check(0); err != nil {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

func sfdisk(t *testing.T, file, script string) {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, "sfdisk"), "-q", file)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestPartitions compares with what sfdisk says of the same MBR.
func TestPartitions(t *testing.T) {
	file := sparse(t, 16<<20)
	sfdisk(t, file, "label: dos\nstart=2048,size=2048,type=83\nsize=8192,type=5\nstart=6144,size=2048,type=82\nstart=10240,size=1024\n")
	var got []string
	for _, p := range inspected(t, file).Contents.Partitions {
		got = append(got, fmt.Sprintf("%d start=%d size=%d type=%s", p.Number, p.Start/512, p.Size/512, p.Type))
	}
	var want []string
	for line := range strings.Lines(run(t, "sfdisk", "-d", file)) {
		if name, rest, ok := strings.Cut(line, " : "); ok && strings.HasPrefix(name, file) {
			fields := strings.NewReplacer(" ", "", ",", " ", "type=", "type=0x").Replace(strings.TrimSpace(rest))
			fields = strings.NewReplacer("type=0x5", "type=0x05").Replace(fields)
			want = append(want, strings.TrimPrefix(name, file)+" "+fields)
		}
	}
	if len(want) != 4 || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nsfdisk says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestTable4096: a table for sectors of 4096 bytes, on a device with these.
func TestTable4096(t *testing.T) {
	b := make([]byte, 8<<20)
	copy(b[510:], "\x55\xaa")
	copy(b[446+4:], "\x83")
	binary.LittleEndian.PutUint32(b[446+8:], 256)
	binary.LittleEndian.PutUint32(b[446+12:], 256)
	c, err := readContents(bytes.NewReader(b), int64(len(b)), 4096)
	if err != nil || len(c.Partitions) != 1 || c.Partitions[0].Start != 1<<20 || c.Partitions[0].Size != 1<<20 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestInspectErrors(t *testing.T) {
	h := server(t)
	d := h.list()["loop2"]
	if err := os.Remove(d.Path); err != nil {
		t.Fatal(err)
	}
	if err := h.Inspect(d); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := d.Occupied(); !errors.Is(err, ErrOccupied) || !strings.Contains(err.Error(), "nobody has looked what is on it") {
		t.Errorf("got %v", err)
	}
	file := sparse(t, 1<<20)
	d = inspected(t, file)
	if err := os.Truncate(file, 1000); err != nil {
		t.Fatal(err)
	}
	if err := h.Inspect(d); err == nil || !strings.Contains(err.Error(), file+": reading what is on it: unexpected EOF") {
		t.Errorf("got %v", err)
	}
}

// FuzzContents: hostile disks.
func FuzzContents(f *testing.F) {
	mbr := make([]byte, 512)
	copy(mbr[446:], "\x80\x00\x00\x00\x05\x00\x00\x00\x01\x00\x00\x00\x10\x00\x00\x00")
	copy(mbr[510:], "\x55\xaa")
	f.Add(mbr, []byte("EFI PART"), uint16(8))
	f.Add(append(mbr, mbr...), mbr, uint16(64))
	f.Fuzz(func(t *testing.T, head, more []byte, sectors uint16) {
		b := make([]byte, max(len(head)+len(more), int(sectors)*512))
		copy(b, head)
		copy(b[len(head):], more)
		for _, sector := range []int64{512, 4096} {
			c, err := readContents(bytes.NewReader(b), int64(len(b)), sector)
			if err != nil {
				t.Fatal(err)
			}
			if strings.ContainsAny(c.String(), "\x00\x1b\n") || len(c.Partitions) > 1024 {
				t.Fatalf("%q", c)
			}
		}
	})
}
