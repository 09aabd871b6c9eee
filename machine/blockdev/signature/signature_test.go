package signature

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// blank returns a device with things written at offsets; negative ones are
// from the end.
func blank(size int64, at map[int64]string) *bytes.Reader {
	b := make([]byte, size)
	for off, s := range at {
		if off < 0 {
			off += size
		}
		copy(b[off:], s)
	}
	return bytes.NewReader(b)
}

const someID = "\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef"
const someUUID = "01234567-89ab-cdef-0123-456789abcdef"

// TestFormats has a line for each format that no program on a build machine
// writes; the others are in TestAgreesWithBlkid too.
func TestFormats(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		at   map[int64]string
		want Signature
	}{
		{map[int64]string{0: "LUKS\xba\xbe\x00\x01", 24: "aes", 168: "0a0a"}, Signature{"crypto_LUKS", "", "0a0a"}},
		{map[int64]string{0: "LUKS\xba\xbe\x00\x02", 24: "root", 168: "0a0a"}, Signature{"crypto_LUKS", "root", "0a0a"}},
		{map[int64]string{3: "-FVE-FS-"}, Signature{Type: "BitLocker"}},
		{map[int64]string{0: "XFSB", 32: someID, 108: "twelve bytes!"}, Signature{"xfs", "twelve bytes", someUUID}},
		{map[int64]string{0: "bluestore block device\n"}, Signature{Type: "ceph_bluestore"}},
		{map[int64]string{32: "NXSB", 72: someID}, Signature{"apfs", "", someUUID}},
		{map[int64]string{512: "LABELONE", 512 + 24: "LVM2 001abcdefGHIJKLMNOPqrstuvwxyzABCDEF"},
			Signature{"LVM2_member", "", "abcdef-GHIJ-KLMN-OPqr-stuv-wxyz-ABCDEF"}},
		{map[int64]string{3: "EXFAT   ", 100: "\x78\x56\x34\x12"}, Signature{"exfat", "", "1234-5678"}},
		{map[int64]string{3: "NTFS    ", 72: "\x08\x07\x06\x05\x04\x03\x02\x01"}, Signature{"ntfs", "", "0102030405060708"}},
		{map[int64]string{1024: "\xe2\xe1\xf5\xe0", 1024 + 48: someID, 1024 + 64: "data"}, Signature{"erofs", "data", someUUID}},
		{map[int64]string{1024: "\x10\x20\xf5\xf2", 1024 + 108: someID, 1024 + 124: "f\x002\x00"}, Signature{"f2fs", "f2", someUUID}},
		{map[int64]string{1024: "H+\x00\x04"}, Signature{Type: "hfsplus"}},
		{map[int64]string{1024 + 56: "\x53\xef", 1024 + 96: "\x08"}, Signature{Type: "jbd"}},
		{map[int64]string{4120: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81" + someID}, Signature{"bcache", "", someUUID}},
		{map[int64]string{4120: "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", 4096 + 56: someID, 4096 + 72: "pool"},
			Signature{"bcachefs", "pool", someUUID}},
		{map[int64]string{65526: "SWAPSPACE2", 1052: "big"}, Signature{"swap", "big", ""}},
		{map[int64]string{4086: "S1SUSPEND"}, Signature{Type: "swsuspend"}},
		{map[int64]string{32769: "BEA01"}, Signature{Type: "udf"}},
		{map[int64]string{32768: "JFS1"}, Signature{Type: "jfs"}},
		{map[int64]string{65536 + 32: someID, 65536 + 64: "_BHRfS_M", 65536 + 299: "data"}, Signature{"btrfs", "data", someUUID}},
		{map[int64]string{65536 + 52: "ReIsEr2Fs"}, Signature{Type: "reiserfs"}},
		{map[int64]string{135 << 10: "\x0c\xb1\xba\x00\x00\x00\x00\x00"}, Signature{Type: "zfs_member"}},
		{map[int64]string{4096: "\xfc\x4e\x2b\xa9\x01", 4112: someID, 4128: "host:0"}, Signature{"linux_raid_member", "host:0", someUUID}},
		{map[int64]string{-8192: "\xfc\x4e\x2b\xa9\x01"}, Signature{Type: "linux_raid_member"}},
		{map[int64]string{-65536: "\xa9\x2b\x4e\xfc"}, Signature{Type: "linux_raid_member"}},
		{map[int64]string{-512: "\xde\x11\xde\x11"}, Signature{Type: "ddf_raid_member"}},
		{map[int64]string{-1024: "Intel Raid ISM Cfg Sig. 1.0"}, Signature{Type: "isw_raid_member"}},
	} {
		got, err := Detect(blank(size, c.at), size)
		if err != nil || len(got) != 1 || got[0] != c.want {
			t.Errorf("%v: got %q, %v, want %q", c.at, got, err, c.want)
		}
	}
}

func TestNothingAndSeveral(t *testing.T) {
	for _, size := range []int64{0, 1, 512, 4096, 64 << 10, 384<<10 + 1, 1 << 20} {
		if got, err := Detect(blank(size, nil), size); err != nil || got != nil {
			t.Errorf("%d zeros: got %v, %v", size, got, err)
		}
	}
	got, err := Detect(blank(1<<20, map[int64]string{0: "XFSB", 4086: "SWAPSPACE2", 1052: "a\x1b[31m\xff"}), 1<<20)
	if err != nil || len(got) != 2 || got[0].String() != "xfs" || got[1].String() != `swap "a\x1b[31m\xff"` {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Detect(bytes.NewReader(make([]byte, 100)), 512); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short device: got %v", err)
	}
}

func TestAgreesWithBlkid(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	const id = "12345678-9abc-4def-8123-456789abcdef"
	blkid := oracle.Tool(t, "blkid")
	for name, cmd := range map[string][]string{
		"ext2":     {"mkfs.ext4", "-q", "-t", "ext2", "-U", id, "-L", "two", "FILE"},
		"ext3":     {"mkfs.ext4", "-q", "-t", "ext3", "-U", id, "FILE"},
		"ext4":     {"mkfs.ext4", "-q", "-U", id, "-L", "EPHEMERAL sixteen", "FILE"},
		"fat16":    {"mkfs.vfat", "-F", "16", "-i", "1234abcd", "-n", "BOOT", "FILE"},
		"fat32":    {"mkfs.vfat", "-F", "32", "-i", "1234abcd", "FILE"},
		"swap":     {"mkswap", "-q", "-U", id, "-L", "sw", "FILE"},
		"squashfs": {"mksquashfs", tree, "FILE", "-quiet", "-noappend"},
		"iso9660":  {"xorriso", "-as", "mkisofs", "-quiet", "-V", "CD LABEL", "-o", "FILE", tree},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, 64<<20); err != nil {
				t.Fatal(err)
			}
			if name == "iso9660" {
				os.Remove(file)
			}
			args := strings.Split(strings.ReplaceAll(strings.Join(cmd[1:], "\n"), "FILE", file), "\n")
			if out, err := exec.Command(oracle.Tool(t, cmd[0]), args...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := exec.Command(blkid, "-p", "-o", "export", file).Output()
			if err != nil {
				t.Fatal(err)
			}
			var want Signature
			for line := range strings.Lines(string(out)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				value = strings.ReplaceAll(value, `\`, "")
				switch key {
				case "TYPE":
					want.Type = value
				case "LABEL":
					want.Label = value
				case "UUID":
					want.UUID = value
				}
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Detect(f, st.Size())
			if err != nil || len(got) != 1 || got[0] != want || want.Type == "" {
				t.Errorf("got %q, %v, blkid says %q", got, err, want)
			}
		})
	}
}

func FuzzDetect(f *testing.F) {
	for _, s := range []string{"XFSB", "LUKS\xba\xbe\x00\x02", "LABELONE", "EXFAT   ", strings.Repeat("\x00", 82) + "FAT32   "} {
		f.Add([]byte(s), uint32(0), uint32(4096))
	}
	f.Add([]byte("EXFAT   "), uint32(3), uint32(12))
	f.Add([]byte("SWAPSPACE2"), uint32(4086), uint32(0))
	f.Add([]byte("\xfc\x4e\x2b\xa9\x01"), uint32(4096), uint32(70000))
	f.Fuzz(func(t *testing.T, data []byte, off, size uint32) {
		off, size = off%(512<<10), size%(1<<20)
		b := make([]byte, max(int(size), int(off)+len(data)))
		copy(b[off:], data)
		got, err := Detect(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range got {
			if s.Type == "" || strings.ContainsAny(s.String(), "\x00\x1b\n") {
				t.Fatalf("%+v", s)
			}
		}
	})
}
