package fat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/internal/oracle"
)

// change is one that is cut everywhere.
type change struct {
	name    string
	do      func(e *Editor) error
	between func(files map[string][]byte) // what a cut may leave, but the states before and after
	halves  bool                          // the entries of the old name are in two sectors
	syncs   int
	after   func(files map[string][]byte)
}

const (
	kernelA = "EFI/Linux/kiln-1-A.efi"
	kernelB = "EFI/Linux/kiln-2-B.efi"
)

// uki is what is written in the tests of cuts.
func uki() []byte { return data(77, 90_001) }

// changes are made to the files of cutFiles.
func changes() []change {
	ctx := func(e *Editor, name string) error {
		b := uki()
		return e.Create(context.Background(), name, bytes.NewReader(b), int64(len(b)), when.Unix())
	}
	return []change{
		{name: "create", syncs: 2,
			do:    func(e *Editor) error { return ctx(e, "EFI/Linux/kiln-2-B+3.efi") },
			after: func(f map[string][]byte) { f["EFI/Linux/kiln-2-B+3.efi"] = uki() }},
		{name: "create with directories", syncs: 2,
			do:    func(e *Editor) error { return ctx(e, "EFI/new directory/in it/kiln-2-B+3.efi") },
			after: func(f map[string][]byte) { f["EFI/new directory/in it/kiln-2-B+3.efi"] = uki() }},
		{name: "create in a new unit", syncs: 2,
			do:    func(e *Editor) error { return ctx(e, "padded/a name of three.txt") },
			after: func(f map[string][]byte) { f["padded/a name of three.txt"] = uki() }},
		{name: "create in a directory that grows", syncs: 2,
			do:    func(e *Editor) error { return ctx(e, "full/a name of three.txt") },
			after: func(f map[string][]byte) { f["full/a name of three.txt"] = uki() }},
		{name: "rename", syncs: 1,
			do: func(e *Editor) error { return e.Rename(kernelA, "EFI/Linux/kiln-1-A+2-1.efi") },
			after: func(f map[string][]byte) {
				f["EFI/Linux/kiln-1-A+2-1.efi"] = f[kernelA]
				delete(f, kernelA)
			}},
		{name: "rename from two units", halves: true, syncs: 3,
			do:      func(e *Editor) error { return e.Rename("span/the second one.txt", "span/renamed to this.txt") },
			between: func(f map[string][]byte) { f["span/renamed to this.txt"] = f["span/the second one.txt"] },
			after: func(f map[string][]byte) {
				f["span/renamed to this.txt"] = f["span/the second one.txt"]
				delete(f, "span/the second one.txt")
			}},
		{name: "rename in a directory that grows", syncs: 3,
			do:      func(e *Editor) error { return e.Rename("full/F7", "full/renamed to this.txt") },
			between: func(f map[string][]byte) { f["full/renamed to this.txt"] = f["full/F7"] },
			after: func(f map[string][]byte) {
				f["full/renamed to this.txt"] = f["full/F7"]
				delete(f, "full/F7")
			}},
		{name: "replace in a sector", syncs: 2,
			do: func(e *Editor) error { return e.Replace(kernelA, kernelB) },
			after: func(f map[string][]byte) {
				f[kernelB] = f[kernelA]
				delete(f, kernelA)
			}},
		{name: "replace in another sector", halves: true, syncs: 4,
			do:      func(e *Editor) error { return e.Replace("span/the second one.txt", "span/the first one.txt") },
			between: func(f map[string][]byte) { f["span/the first one.txt"] = f["span/the second one.txt"] },
			after: func(f map[string][]byte) {
				f["span/the first one.txt"] = f["span/the second one.txt"]
				delete(f, "span/the second one.txt")
			}},
		{name: "remove", syncs: 2,
			do:    func(e *Editor) error { return e.Remove(kernelB) },
			after: func(f map[string][]byte) { delete(f, kernelB) }},
		{name: "remove from two units", halves: true, syncs: 3,
			do:    func(e *Editor) error { return e.Remove("span/the second one.txt") },
			after: func(f map[string][]byte) { delete(f, "span/the second one.txt") }},
		{name: "remove a directory", syncs: 2,
			do:    func(e *Editor) error { return e.Remove("empty directory") },
			after: func(f map[string][]byte) { delete(f, "empty directory/") }},
	}
}

func cutFiles() map[string][]byte {
	files := map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI": data(1, 3000), kernelA: data(2, 70_000), kernelB: data(3, 60_000),
		"loader/loader.conf": []byte("timeout 0\n"), "empty directory/": nil,
		// ".", ".." and four names of three entries each are before the last one.
		"span/the first one.txt": data(4, 1500),
	}
	for i := range 3 {
		files[fmt.Sprintf("span/the other %d.txt", i)] = data(uint64(5+i), 900)
	}
	files["span/the second one.txt"] = data(8, 2500)
	for i := range 14 {
		files[fmt.Sprintf("full/F%d", i)] = data(uint64(10+i), 700)
	}
	for i := range 13 {
		files[fmt.Sprintf("padded/F%d", i)] = nil
	}
	// So that the directory has a second unit, it once had more files.
	for i := range 4 {
		files[fmt.Sprintf("padded/G%d", i)] = nil
	}
	return files
}

// TestCuts cuts every change at every operation.
func TestCuts(t *testing.T) {
	for _, tt := range []struct {
		size   int64
		sector int
	}{{34 * mib, 512}, {270 * mib, 4096}} {
		files := cutFiles()
		base := build(t, treeOf(t, files), options(tt.size, tt.sector))
		img := newImage(t, base)
		start := newDisk(base)
		e := edit(t, start)
		for i := range 4 {
			name := fmt.Sprintf("padded/G%d", i)
			if err := e.Remove(name); err != nil {
				t.Fatal(err)
			}
			delete(files, name)
		}
		total, checked := 0, 0
		for _, c := range changes() {
			n, k := cutEverywhere(t, fmt.Sprintf("%d by %d: %s", tt.size, tt.sector, c.name), start, img, files, c)
			total, checked = total+n, checked+k
		}
		t.Logf("%d bytes, sectors of %d: %d states, %d of them and the repaired ones seen by fsck.fat", tt.size, tt.sector, total, checked)
	}
}

func cutEverywhere(t *testing.T, what string, start *disk, img *image, files map[string][]byte, c change) (states, checked int) {
	t.Helper()
	d := start.fork()
	if err := c.do(edit(t, d)); err != nil {
		t.Errorf("%s: %v", what, err)
		return 0, 0
	}
	before, after := listing(t, treeOf(t, files), 0), listingAfter(t, files, c.after)
	want := []string{before, after}
	if c.between != nil {
		want = append(want, listingAfter(t, files, c.between))
	}
	if got := state(t, d); got != after {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, after)
	}
	if err := fsck(t, img.write(t, d)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	syncs := 0
	for _, op := range d.log {
		if op.data == nil {
			syncs++
		}
	}
	if syncs > c.syncs {
		t.Errorf("%s: %d syncs, want at most %d", what, syncs, c.syncs)
	}
	free := edit(t, d).Free()
	seen := make([]bool, len(want))
	failed := false
	n := start.cuts(d.log, 8, rand.New(rand.NewPCG(1, 0)), func(at string, cut *disk) {
		if failed {
			return
		}
		fail := func(format string, args ...any) {
			failed = true
			t.Errorf("%s, %s: %s", what, at, fmt.Sprintf(format, args...))
		}
		got := state(t, cut)
		i := slices.Index(want, got)
		if i < 0 {
			fail("got\n%s\nwant\n%s\nor\n%s", got, before, after)
			return
		}
		seen[i] = true
		sample := states%9 == 0
		states++
		if sample {
			checked++
			if err := fsckCut(t, img.write(t, cut), c); err != nil {
				fail("%v", err)
			}
			if names := mtoolsNames(t, img.name); names != namesOf(got) {
				fail("mdir lists\n%s\nwant\n%s", names, namesOf(got))
			}
		}
		// Whoever does it again gets it done, and all that leaked is free.
		e, err := Edit(cut, cut.Size())
		if err == nil {
			err = c.do(e)
		}
		if err != nil && (got != after || !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist)) {
			fail("again: %v", err)
		}
		if got := state(t, cut); got != after || e.Free() != free && e.Free() != free-e.cluster {
			fail("again: %d bytes are free, want %d, and\n%s\nwant\n%s", e.Free(), free, got, after)
		}
		if sample {
			checked++
			if err := fsck(t, img.write(t, cut)); err != nil {
				fail("again: %v", err)
			}
		}
	})
	if !failed && slices.Contains(seen, false) {
		t.Errorf("%s: not all of before, after and between were seen: %v", what, seen)
	}
	return n, checked
}

// mtoolsNames returns all paths that mdir sees, sorted.
func mtoolsNames(t *testing.T, img string) string {
	t.Helper()
	var names []string
	for line := range strings.Lines(run(t, oracle.Tool(t, "mdir"), "-/", "-b", "-i", img, "::")) {
		names = append(names, strings.Trim(strings.TrimPrefix(line, "::"), "/\n"))
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// namesOf returns the paths in a listing, sorted.
func namesOf(listing string) string {
	var names []string
	for line := range strings.Lines(listing) {
		fields := strings.Split(line, " ") // a name, which may have spaces, and three more
		if name := strings.Join(fields[:len(fields)-3], " "); name != "." {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

func listingAfter(t *testing.T, files map[string][]byte, change func(map[string][]byte)) string {
	f := make(map[string][]byte, len(files))
	for name, content := range files {
		f[name] = content
	}
	change(f)
	return listing(t, treeOf(t, f), 0)
}

// What fsck.fat may say after a cut: always that clusters leaked and that counts
// or copies differ; twinLines if there may be two names of a file; and orphanLines
// if the entries of a name were in two sectors.
var (
	cutLines    = regexp.MustCompile(`^(fsck\.fat .*|.*: \d+ files, \d+/\d+ clusters|Reclaimed \d+ unused clusters? \(\d+ bytes\)\.|Free cluster summary wrong .*|  Auto-correcting\.|FATs differ but appear to be intact\.|  Using first FAT\.|Leaving filesystem unchanged\.|)$`)
	twinLines   = regexp.MustCompile(`^(/.*  and|/[^ ]+/.*\.txt|/full/F7|  share clusters\.|  Truncating second to 0 bytes\.|  File size is \d+ bytes, cluster chain length is 0 bytes\.|  Truncating file to 0 bytes\.)$`)
	orphanLines = regexp.MustCompile(`^(Orphaned long file name part ".*"|  Auto-deleting\.)$`)
)

func fsckCut(t *testing.T, name string, c change) error {
	out, err := exec.Command(oracle.Tool(t, "fsck.fat"), "-n", name).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if !cutLines.MatchString(line) && !(c.between != nil && twinLines.MatchString(line)) && !(c.halves && orphanLines.MatchString(line)) {
			return fmt.Errorf("fsck.fat says %q: %v\n%s", line, err, out)
		}
	}
	return nil
}

// TestEditFaults fails every write and Sync of every change.
func TestEditFaults(t *testing.T) {
	files := cutFiles()
	start := newDisk(build(t, treeOf(t, files), options(34*mib, 512)))
	n := 0
	for _, c := range changes() {
		want := []string{listing(t, treeOf(t, files), 0), listingAfter(t, files, c.after)}
		if c.between != nil {
			want = append(want, listingAfter(t, files, c.between))
		}
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
			for at := 0; ; at++ {
				d := start.fork()
				e := edit(t, d)
				var failed string
				d.fail = func(n int) error {
					if n != at {
						return nil
					}
					failed = "sync"
					return fault
				}
				err := c.do(e)
				if failed == "" {
					break
				}
				n++
				first, _, _ := strings.Cut(err.Error(), ": ")
				if !errors.Is(err, fault) || !regexp.MustCompile(`^`+regexp.QuoteMeta(first)+`: (writing \d+ bytes at \d+|sync) of the file system: `+fault.Error()+`$`).MatchString(err.Error()) {
					t.Errorf("%s, operation %d: %v", c.name, at, err)
				}
				d.fail = nil
				if again := e.Remove("loader/loader.conf"); !errors.Is(again, fault) {
					t.Errorf("%s, operation %d: after the error Remove says %v", c.name, at, again)
				}
				if got := state(t, d); !slices.Contains(want, got) {
					t.Errorf("%s, operation %d: got\n%s\nwant\n%s", c.name, at, got, want[0])
				}
			}
		}
	}
	t.Logf("%d faults", n)
}
