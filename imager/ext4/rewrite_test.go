package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

func fsckBytes(t testing.TB, image []byte) {
	t.Helper()
	fsck(t, writeBytes(t, image))
}

func writeBytes(t testing.TB, image []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ext4.img")
	if err := os.WriteFile(name, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestRewrite rewrites slots with less and more, again and again, and has the
// results checked by e2fsck and read by debugfs.
func TestRewrite(t *testing.T) {
	image, tr, _ := slots(t)
	fsckBytes(t, image)
	dev := record(image)
	e := editor(t, dev, len(image))
	for _, step := range []struct {
		dir               string
		kernel, initramfs int64
	}{
		{"B", 30_000, 90_000},
		{"A", 0, 4096},
		{"A", 100_000, 16384}, // with the block that the kernel has apart: all there is
		{"B", 4097, 150_000 - 8192},
		{"B", 150_000, 0},
		{"B", 1, 1},
	} {
		files := newSlot(step.kernel, step.initramfs)
		if err := e.Check(step.dir, files); err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(dev.now)
		if err := e.Rewrite(t.Context(), step.dir, files); err != nil {
			t.Fatalf("%+v: %v", step, err)
		}
		tr = want(t, tr, step.dir, files)
		holds(t, dev.now, tr)
		fsckBytes(t, dev.now)
		debugfsReads(t, dev.now, step.dir, files)
		onlySlotChanged(t, before, dev.now, step.dir)
	}
}

// debugfsReads compares contents with what debugfs reads.
func debugfsReads(t *testing.T, image []byte, dir string, files []File) {
	t.Helper()
	name := writeBytes(t, image)
	for _, f := range files {
		got, err := exec.Command(oracle.Tool(t, "debugfs"), "-R", "cat "+dir+"/"+f.Name, name).Output()
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(extent.Reader(f.Content))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("debugfs: %s has %d bytes, want the %d written", f.Name, len(got), len(want))
		}
	}
}

// onlySlotChanged wants changes in the slot's blocks and inodes only.
func onlySlotChanged(t *testing.T, before, after []byte, dir string) {
	t.Helper()
	e := editor(t, record(after), len(after))
	files, err := e.load()
	if err != nil {
		t.Fatal(err)
	}
	mask := bytes.Clone(after)
	for _, name := range []string{"vmlinuz", "initramfs", "slot.cfg"} {
		f := files[dir+"/"+name]
		for _, r := range f.owned() {
			copy(mask[r.start*blockSize:r.end()*blockSize], before[r.start*blockSize:])
		}
		at, err := e.inodeAt(f.ino)
		if err != nil {
			t.Fatal(err)
		}
		copy(mask[at:at+inodeSize], before[at:])
	}
	if !bytes.Equal(mask, before) {
		t.Error("bytes beside the slot's blocks and inodes changed")
	}
}

// TestCuts cuts an upgrade everywhere: after every sector, and in many orders
// of what was not synced.
func TestCuts(t *testing.T) {
	oldTree, newTree, dev, image := upgrade(t)
	states := 0
	check := func(what string, b []byte) {
		states++
		checkCut(t, what, b, oldTree, newTree)
		if t.Failed() {
			t.FailNow()
		}
	}
	for n := range len(dev.writes) + 1 {
		check(fmt.Sprintf("%d sectors", n), dev.after(n))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		check(fmt.Sprintf("order %d", i), dev.reordered(r))
	}
	if !bytes.Equal(dev.after(len(dev.writes)), dev.now) || dev.writes[len(dev.writes)-1].epoch != dev.epoch-1 {
		t.Error("not all writes were recorded and synced")
	}
	t.Logf("%d sectors of %d bytes in %d epochs, %d states after a cut", len(dev.writes), len(image), dev.epoch, states)
}

// upgrade records an upgrade of slot A, which was full.
func upgrade(t *testing.T) (oldTree, newTree *tree.Tree, dev *recorder, image []byte) {
	image, oldTree, _ = slots(t)
	dev = record(image)
	files := newSlot(33_333, 70_000)
	if err := editor(t, dev, len(image)).Rewrite(t.Context(), "A", files); err != nil {
		t.Fatal(err)
	}
	return oldTree, want(t, oldTree, "A", files), dev, image
}

// checkCut wants the other slot and grub/ unchanged, and the slot old, new, or
// with an empty slot.cfg; and another upgrade to work.
func checkCut(t *testing.T, what string, b []byte, oldTree, newTree *tree.Tree) {
	t.Helper()
	got, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for _, name := range []string{"B/vmlinuz", "B/initramfs", "B/slot.cfg", "grub/grub.cfg", "grub/grubenv"} {
		if !equal(t, got.Tree, oldTree, name) {
			t.Errorf("%s: %s changed", what, name)
		}
	}
	if got.Tree.Lookup("A/slot.cfg").Size() > 0 && !whole(t, got.Tree, oldTree) && !whole(t, got.Tree, newTree) {
		t.Errorf("%s: slot.cfg is there, but the slot is neither old nor new", what)
	}
	again := record(b)
	files := newSlot(50_001, 60_000)
	if err := editor(t, again, len(b)).Rewrite(t.Context(), "A", files); err != nil {
		t.Fatalf("%s: again: %v", what, err)
	}
	final, err := Open(again, int64(len(b)))
	if err != nil {
		t.Fatalf("%s: again: %v", what, err)
	}
	if !whole(t, final.Tree, want(t, oldTree, "A", files)) {
		t.Errorf("%s: another upgrade did not write its files", what)
	}
}

func whole(t *testing.T, got, want *tree.Tree) bool {
	return equal(t, got, want, "A/vmlinuz") && equal(t, got, want, "A/initramfs") && equal(t, got, want, "A/slot.cfg")
}

// equal compares a file's content in two trees.
func equal(t *testing.T, a, b *tree.Tree, name string) bool {
	t.Helper()
	var contents [2][]byte
	for i, tr := range []*tree.Tree{a, b} {
		ino := tr.Lookup(name)
		contents[i] = make([]byte, ino.Size())
		if ino.Content == nil {
			continue
		}
		if _, err := ino.Content.ReadAt(contents[i], 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	return bytes.Equal(contents[0], contents[1])
}

var fsckInode = regexp.MustCompile(`(?i)inodes?[ #]+(\d+)`)

// TestCutsFsck has e2fsck look at the state after each sync, and at others. It
// may only complain about the slot's own inodes, must not while contents are
// written, and not after another upgrade.
func TestCutsFsck(t *testing.T) {
	oracle.Tool(t, "e2fsck")
	_, _, dev, _ := upgrade(t)
	states := map[string][]byte{}
	last := 0
	var order []string
	for n, w := range append(dev.writes, sectorWrite{epoch: dev.epoch}) {
		if w.epoch != last {
			name := fmt.Sprintf("sync %d", w.epoch)
			states[name] = dev.after(n)
			order = append(order, name)
			last = w.epoch
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 12 {
		name := fmt.Sprintf("order %d", i)
		states[name] = dev.reordered(r)
		order = append(order, name)
	}
	clean := map[string]bool{}
	for _, name := range order {
		img := writeBytes(t, states[name])
		cmd := exec.Command(oracle.Tool(t, "e2fsck"), "-fn", img)
		out, err := cmd.CombinedOutput()
		if clean[name] = err == nil; err != nil && cmd.ProcessState.ExitCode() != 4 {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, m := range fsckInode.FindAllStringSubmatch(string(out), -1) {
			if !slices.Contains([]string{"13", "14", "15"}, m[1]) { // A/initramfs, A/slot.cfg, A/vmlinuz
				t.Errorf("%s: e2fsck complains about inode %s\n%s", name, m[1], out)
			}
		}
		for _, other := range []string{"bitmap differences", "Free blocks count", "Superblock"} {
			if strings.Contains(string(out), other) {
				t.Errorf("%s: %s", name, out)
			}
		}
		again := record(states[name])
		if err := editor(t, again, len(again.now)).Rewrite(t.Context(), "A", newSlot(50_001, 60_000)); err != nil {
			t.Fatal(err)
		}
		fsckBytes(t, again.now)
	}
	for _, name := range []string{"sync 1", "sync 3", "sync 4", "sync 6", "sync 7"} {
		if !clean[name] {
			t.Errorf("after %s the file system is not clean", name)
		}
	}
}

// TestFaults lets every write and every sync fail.
func TestFaults(t *testing.T) {
	oldTree, newTree, dev, image := upgrade(t)
	for n := 1; n <= dev.calls; n++ {
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
			bad := record(image)
			bad.fail, bad.err = n, fault
			err := editor(t, bad, len(image)).Rewrite(t.Context(), "A", newSlot(33_333, 70_000))
			if !errors.Is(err, fault) || !strings.HasPrefix(err.Error(), "A: ") || !strings.Contains(err.Error(), "ext4: ") {
				t.Fatalf("call %d: %v, want %v with the step", n, err, fault)
			}
			checkCut(t, fmt.Sprintf("call %d", n), bad.now, oldTree, newTree)
		}
	}
	t.Logf("%d faults", 2*dev.calls)
}

// TestLeaf rewrites files in so many pieces that their extents need a block, over
// and over, with every cut on the way.
func TestLeaf(t *testing.T) {
	tr := tree.New()
	var files []File
	for i := range 40 {
		name := fmt.Sprintf("f%02d", i)
		add(t, tr, "A/"+name, &tree.Inode{Mode: 0o644, Content: pattern{blockSize, byte(i)}})
		if i%2 == 0 {
			files = append(files, File{Name: name})
		}
	}
	add(t, tr, "A/z", text("old"))
	opts := testOptions
	size, err := MinSize(tr, opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.Size = size
	now, err := io.ReadAll(extent.Reader(build(t, tr, opts)))
	if err != nil {
		t.Fatal(err)
	}
	last := File{Name: "z", Content: extent.Bytes([]byte("new"))}
	for _, blocks := range []int64{18, 18, 3, 0, 18} { // 20 less the two that hold extents
		files := append(slices.Clone(files), last)
		files[19].Content = pattern{(blocks - 1) * blockSize, byte(blocks)}
		if blocks == 0 {
			files[19].Content = nil
		} else {
			files[0].Content = pattern{77, byte(blocks)}
		}
		dev := record(now)
		if err := editor(t, dev, len(now)).Rewrite(t.Context(), "A", files); err != nil {
			t.Fatalf("%d blocks: %v", blocks, err)
		}
		expected := want(t, tr, "A", files)
		holds(t, dev.now, expected)
		fsckBytes(t, dev.now)
		r := rand.New(rand.NewPCG(5, uint64(blocks)))
		for i := range 150 {
			again := record(dev.reordered(r))
			if err := editor(t, again, len(now)).Rewrite(t.Context(), "A", files); err != nil {
				t.Fatalf("%d blocks, order %d: %v", blocks, i, err)
			}
			if i%50 == 0 {
				holds(t, again.now, expected)
				fsckBytes(t, again.now)
			}
		}
		now = dev.now
	}
	files[19].Content = pattern{19 * blockSize, 1}
	var space *SpaceError
	err = editor(t, record(now), len(now)).Check("A", append(slices.Clone(files), last))
	if !errors.As(err, &space) || *space != (SpaceError{"A", 21 * blockSize, 20 * blockSize}) {
		t.Errorf("one block too many: %v", err)
	}
}
