package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// A table is a partition table as fdisk reads it.
type table []tablePartition

type tablePartition struct {
	number      int
	start, size int64 // bytes
	label, kind string
}

func (t table) find(tb testing.TB, label string) tablePartition {
	tb.Helper()
	for _, p := range t {
		if p.label == label {
			return p
		}
	}
	tb.Fatalf("no partition %s", label)
	return tablePartition{}
}

// readTable lets fdisk read the partition table of an image.
func readTable(t testing.TB, image string, sector int64) table {
	t.Helper()
	out := run(t, oracle.Tool(t, "fdisk"), "-b", fmt.Sprint(sector), "-l", "-o", "Start,Sectors,Type-UUID,Name", image)
	_, rows, ok := strings.Cut(out, "Name\n")
	if !ok || strings.Contains(out, "corrupt") || strings.Contains(out, "mismatch") {
		t.Fatalf("fdisk: %s", out)
	}
	var parts table
	for row := range strings.Lines(rows) {
		f := strings.Fields(row)
		if len(f) != 4 {
			t.Fatalf("fdisk: row %q in\n%s", row, out)
		}
		start, err1 := strconv.ParseInt(f[0], 10, 64)
		size, err2 := strconv.ParseInt(f[1], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("fdisk: row %q in\n%s", row, out)
		}
		parts = append(parts, tablePartition{len(parts) + 1, start * sector, size * sector, f[3], f[2]})
	}
	return parts
}

// carve copies a partition to a file, holes as holes.
func carve(t testing.TB, image string, p tablePartition) string {
	t.Helper()
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), p.label))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < p.size; at += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), p.size-at)]
		if _, err := in.ReadAt(b, p.start+at); err != nil {
			t.Fatalf("%s: %v", p.label, err)
		}
		if bytes.Equal(b, zero[:len(b)]) {
			continue
		}
		if _, err := out.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Truncate(p.size); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

func copySparse(t testing.TB, file string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(file))
	run(t, oracle.Tool(t, "cp"), "--sparse=always", "--no-preserve=mode", file, to)
	return to
}

// image is one of the images under test.
type image struct {
	env    string
	sector int64
	labels []string
}

func images() map[string]image {
	return map[string]image{
		"metal":    {"KILN_IMAGE", 512, []string{"EFI", "BIOS", "BOOT", "META", "STATE", "EPHEMERAL"}},
		"metal-4k": {"KILN_IMAGE_4K", 4096, []string{"EFI", "META", "STATE", "EPHEMERAL"}},
	}
}

// eachImage runs f for each image.
func eachImage(t *testing.T, f func(t *testing.T, img image, file string)) {
	for name, img := range images() {
		t.Run(name, func(t *testing.T) { f(t, img, oracle.Artifact(t, img.env)) })
	}
}

// sgdisk exits with 0 even where it finds problems.
var sgdiskComplaint = regexp.MustCompile(`(?i)caution|warning|problem:|creating new GPT|invalid|corrupt|overlap|mismatch`)

func TestPartitionTable(t *testing.T) {
	types := map[string]string{
		"EFI": "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "BIOS": "21686148-6449-6E6F-744E-656564454649",
		"BOOT": "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "META": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
		"STATE": "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "EPHEMERAL": "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
	}
	const mib = 1 << 20
	eachImage(t, func(t *testing.T, img image, file string) {
		parts := readTable(t, file, img.sector)
		var labels []string
		for _, p := range parts {
			labels = append(labels, p.label)
			if p.kind != types[p.label] {
				t.Errorf("%s has type %s, want %s", p.label, p.kind, types[p.label])
			}
			if p.start%mib != 0 || p.size%mib != 0 {
				t.Errorf("%s is %d bytes at %d, want multiples of 1 MiB", p.label, p.size, p.start)
			}
		}
		if !slices.Equal(labels, img.labels) {
			t.Fatalf("partitions are %v, want %v", labels, img.labels)
		}
		for label, size := range map[string]int64{"META": mib, "STATE": 100 * mib} {
			if got := parts.find(t, label).size; got != size {
				t.Errorf("%s has %d bytes, want %d", label, got, size)
			}
		}
		if img.sector != 512 { // sgdisk and parted take files for disks of 512-byte sectors
			return
		}
		out := run(t, oracle.Tool(t, "sgdisk"), "-v", file)
		if !strings.Contains(out, "No problems found") || sgdiskComplaint.MatchString(out) {
			t.Errorf("sgdisk -v: %s", out)
		}
		for i, row := range strings.Split(strings.TrimSpace(run(t, oracle.Tool(t, "parted"), "-m", "-s", file, "unit", "B", "print")), "\n")[2:] {
			f := strings.Split(row, ":")
			p := parts[i]
			want := []string{fmt.Sprint(p.number), fmt.Sprintf("%dB", p.start), fmt.Sprintf("%dB", p.start+p.size-1), fmt.Sprintf("%dB", p.size)}
			if !slices.Equal(f[:4], want) || f[5] != p.label {
				t.Errorf("parted prints %q, want %v and %s", row, want, p.label)
			}
		}
	})
}

func TestFileSystems(t *testing.T) {
	eachImage(t, func(t *testing.T, img image, file string) {
		parts := readTable(t, file, img.sector)
		efi := carve(t, file, parts.find(t, "EFI"))
		out := run(t, oracle.Tool(t, "fsck.fat"), "-n", "-v", efi)
		for _, want := range []string{"FATs, 32 bit entries", fmt.Sprintf("%d bytes per logical sector", img.sector)} {
			if !strings.Contains(out, want) {
				t.Errorf("fsck.fat does not say %q:\n%s", want, out)
			}
		}
		// It exits with 0 on a file system that is too small for its type.
		clusters := regexp.MustCompile(`/(\d+) clusters`).FindStringSubmatch(out)
		if clusters == nil {
			t.Errorf("fsck.fat names no number of clusters:\n%s", out)
		} else if n, _ := strconv.Atoi(clusters[1]); n < 65525 {
			t.Errorf("EFI has %d clusters, FAT32 needs 65525", n)
		}
		// Some problems it reports without minding them.
		if _, after, ok := strings.Cut(out, "Checking free cluster summary.\n"); !ok || strings.Count(after, "\n") != 1 {
			t.Errorf("fsck.fat has more to say than the number of clusters:\n%s", out)
		}
		dir := run(t, oracle.Tool(t, "mdir"), "-i", efi, "-b", "-/", "::")
		for _, want := range []string{"::/EFI/BOOT/BOOTX64.EFI", "::/EFI/Linux/kiln-1-A.efi", "::/loader/loader.conf"} {
			if !slices.Contains(strings.Split(dir, "\n"), want) {
				t.Errorf("mdir does not list %s:\n%s", want, dir)
			}
		}
		ids := map[string]string{}
		for _, label := range []string{"BOOT", "STATE", "EPHEMERAL"} {
			if !slices.Contains(img.labels, label) {
				continue
			}
			part := carve(t, file, parts.find(t, label))
			run(t, oracle.Tool(t, "e2fsck"), "-fn", part)
			h := run(t, oracle.Tool(t, "dumpe2fs"), "-h", part)
			values := map[string]string{}
			for line := range strings.Lines(h) {
				key, value, _ := strings.Cut(line, ":")
				values[key] = strings.TrimSpace(value)
			}
			if values["Filesystem volume name"] != label || values["Filesystem state"] != "clean" {
				t.Errorf("%s: dumpe2fs -h:\n%s", label, h)
			}
			if other := ids[values["Filesystem UUID"]]; other != "" {
				t.Errorf("%s and %s both have UUID %s", other, label, values["Filesystem UUID"])
			}
			ids[values["Filesystem UUID"]] = label
		}
	})
}

// Both boot loaders find the same kernel and initramfs, and the layers in that
// are what the base and the extension hold.
func TestBootAssets(t *testing.T) {
	file := oracle.Artifact(t, "KILN_IMAGE")
	parts := readTable(t, file, 512)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }

	// What GRUB reads through its own drivers, from the partition its prefix names.
	grub := oracle.Tool(t, "grub-fstest")
	for _, name := range []string{"vmlinuz", "initramfs"} {
		run(t, grub, file, "cp", "(loop0,gpt3)/A/"+name, at(name))
	}
	config := run(t, grub, file, "cat", "(loop0,gpt3)/A/slot.cfg")
	if !strings.Contains(config, "/A/vmlinuz") || !strings.Contains(config, "/A/initramfs") || !strings.Contains(config, "kiln.slot=A") {
		t.Errorf("slot.cfg:\n%s", config)
	}
	// What systemd-boot starts.
	efi := carve(t, file, parts.find(t, "EFI"))
	run(t, oracle.Tool(t, "mcopy"), "-i", efi, "::/EFI/Linux/kiln-1-A.efi", at("kiln-1-A.efi"))
	var dump []string
	for _, s := range []string{"linux", "initrd", "cmdline", "osrel", "uname"} {
		dump = append(dump, "--dump-section", "."+s+"="+at("uki."+s))
	}
	run(t, oracle.Tool(t, "objcopy"), append(dump, at("kiln-1-A.efi"), at("ignored"))...)
	for uki, grub := range map[string]string{"uki.linux": "vmlinuz", "uki.initrd": "initramfs"} {
		if !bytes.Equal(read(t, at(uki)), read(t, at(grub))) {
			t.Errorf("the UKI's %s differs from %s on BOOT", uki, grub)
		}
	}
	cmdline := strings.TrimRight(string(read(t, at("uki.cmdline"))), "\x00\n")
	if !strings.Contains(strings.ReplaceAll(config, "'", ""), cmdline+"; then\n") {
		t.Errorf("slot.cfg does not have the UKI's command line %q:\n%s", cmdline, config)
	}

	layers := unpack(t, dir, read(t, at("initramfs")))
	if len(layers) != 3 {
		t.Fatalf("layers are %v, want root file system, extension, module index", layers)
	}
	// One over the other they are a root file system whose modules kmod finds.
	root := at("root")
	for i, l := range layers {
		listing := run(t, oracle.Tool(t, "unsquashfs"), "-lln", l)
		if i == 0 && !strings.Contains(listing, " squashfs-root/usr/bin/init\n") {
			t.Errorf("no /usr/bin/init in %s:\n%.2000s", l, listing)
		}
		run(t, oracle.Tool(t, "unsquashfs"), "-q", "-n", "-f", "-d", root, l)
	}
	release := strings.TrimRight(string(read(t, at("uki.uname"))), "\x00")
	modules := filepath.Join(root, "usr/lib/modules", release)
	plan := run(t, oracle.Tool(t, "modprobe"), "-d", root, "-S", release, "-n", "--show-depends", "wireguard")
	if !regexp.MustCompile(`(?m)^insmod \S*/wireguard\.ko(\.\S+)? *$`).MatchString(plan) {
		t.Errorf("modprobe would not load wireguard:\n%s", plan)
	}
	index := map[string][]byte{}
	names, err := filepath.Glob(filepath.Join(modules, "modules.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		index[filepath.Base(name)] = read(t, name)
	}
	run(t, oracle.Tool(t, "depmod"), "-b", root, release)
	for _, name := range []string{"modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin",
		"modules.symbols", "modules.symbols.bin", "modules.softdep", "modules.builtin.bin"} {
		if !bytes.Equal(index[name], read(t, filepath.Join(modules, name))) {
			t.Errorf("%s of the image is not what depmod makes of its modules", name)
		}
	}
	if t.Failed() {
		t.Logf("index files: %v", slices.Sorted(maps.Keys(index)))
	}
}

// unpack unpacks the archives of an initramfs, a compressed and then stored ones,
// with zstd and GNU cpio, and returns the files of its layers in their order.
func unpack(t *testing.T, dir string, initramfs []byte) []string {
	t.Helper()
	file := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	// A stored archive begins with a header, at a multiple of 4. What looks like one
	// may as well be in the compressed archive, where compression gained nothing;
	// zstd knows where that ends, but for the up to three zeros between the two.
	zstd, cpio, init := oracle.Tool(t, "zstd"), oracle.Tool(t, "cpio"), filepath.Join(dir, "init.cpio")
	whole := func(end int) bool {
		for pad := range 4 {
			if pad > 0 && initramfs[end-pad] != 0 {
				return false
			}
			if exec.Command(zstd, "-q", "-f", "-d", file("init.zst", initramfs[:end-pad]), "-o", init).Run() == nil {
				return true
			}
		}
		return false
	}
	stored := -1
	for at := 4; at+6 <= len(initramfs) && stored < 0; at += 4 {
		if string(initramfs[at:at+6]) == "070701" && whole(at) {
			stored = at
		}
	}
	if stored < 0 {
		t.Fatal("no stored archive behind a compressed one")
	}
	if names := strings.Split(run(t, cpio, "-t", "-F", init), "\n"); !slices.Contains(names, "init") {
		t.Errorf("no init in the initramfs: %v", names)
	}
	stack := filepath.Join(dir, "stack")
	if err := os.Mkdir(stack, 0o755); err != nil {
		t.Fatal(err)
	}
	const trailer = "TRAILER!!!\x00"
	for rest := initramfs[stored:]; len(rest) > 0; {
		end := bytes.Index(rest, []byte(trailer))
		if end < 0 {
			t.Fatalf("%d bytes without an end behind the last archive", len(rest))
		}
		end = min(len(rest), (end+len(trailer)+3)/4*4)
		run(t, cpio, "-i", "-d", "--quiet", "--no-absolute-filenames", "-D", stack, "-F", file("stored.cpio", rest[:end]))
		rest = bytes.TrimLeft(rest[end:], "\x00")
	}
	var index struct {
		Layers []struct {
			Path, SHA256 string
			Size         int64
		}
	}
	if err := json.Unmarshal(read(t, filepath.Join(stack, "layers.json")), &index); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, l := range index.Layers {
		name := filepath.Join(stack, l.Path)
		if sum := run(t, oracle.Tool(t, "sha256sum"), name); !strings.HasPrefix(sum, l.SHA256+" ") {
			t.Errorf("%s: sha256sum says %s, layers.json %s", l.Path, sum, l.SHA256)
		}
		files = append(files, name)
	}
	return files
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What kiln says is in an image is what fdisk finds.
func TestInspect(t *testing.T) {
	kiln := oracle.Artifact(t, "KILN_BIN")
	eachImage(t, func(t *testing.T, img image, file string) {
		var got struct {
			SectorSize int64
			Partitions []struct {
				Number      int
				Label       string
				Start, Size int64
			}
			Entries []struct{ Loader string }
		}
		if err := json.Unmarshal([]byte(run(t, kiln, "inspect", "--json", file)), &got); err != nil {
			t.Fatal(err)
		}
		want := readTable(t, file, img.sector)
		if got.SectorSize != img.sector || len(got.Partitions) != len(want) {
			t.Fatalf("%+v, want sectors of %d and %d partitions", got, img.sector, len(want))
		}
		for i, p := range got.Partitions {
			if w := want[i]; p.Number != w.number || p.Label != w.label || p.Start != w.start || p.Size != w.size {
				t.Errorf("%+v, fdisk: %+v", p, w)
			}
		}
		var loaders []string
		for _, e := range got.Entries {
			loaders = append(loaders, e.Loader)
		}
		slices.Sort(loaders)
		if want := map[int64][]string{512: {"grub", "systemd-boot"}, 4096: {"systemd-boot"}}[img.sector]; !slices.Equal(loaders, want) {
			t.Errorf("boot entries of %v, want %v", loaders, want)
		}
	})
}

// The image is no larger on the host's disk than what is in it.
func TestImageIsSparse(t *testing.T) {
	file := oracle.Artifact(t, "KILN_IMAGE")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	var used int64
	buf, zero := make([]byte, 4096), make([]byte, 4096)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			used += int64(n)
		}
		if err != nil {
			break
		}
	}
	blocks := strings.TrimSpace(run(t, oracle.Tool(t, "stat"), "-c", "%b", file))
	n, err := strconv.ParseInt(blocks, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if allocated := n * 512; allocated > used+used/20+1<<20 {
		t.Errorf("%d bytes are allocated for %d bytes that are not zero", allocated, used)
	}
}
