package ext4

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// TestDebugfs compares every inode and every content with what debugfs reads.
func TestDebugfs(t *testing.T) {
	debugfs := oracle.Tool(t, "debugfs")
	tr := everything(t)
	img := writeImage(t, build(t, tr, sized(300*mib)))
	dir := t.TempDir()
	links := map[*tree.Inode]int{}
	var paths []string
	var script strings.Builder
	for name, ino := range tr.All() {
		if strings.ContainsAny(name, " ") {
			continue // debugfs splits its arguments
		}
		paths = append(paths, name)
		links[ino]++
		fmt.Fprintf(&script, "stat \"/%s\"\n", name)
		if ino.Mode.IsRegular() {
			fmt.Fprintf(&script, "dump \"/%s\" %s/%d\n", name, dir, len(paths)-1)
		}
	}
	cmd := exec.Command(debugfs, "-f", "-", img)
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = append(os.Environ(), "DEBUGFS_PAGER=cat", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v %s", err, out)
	}
	stats := strings.Split(string(out), "debugfs: stat ")[1:]
	if len(stats) != len(paths) {
		t.Fatalf("debugfs knows %d of %d paths", len(stats), len(paths))
	}
	for i, name := range paths {
		ino := tr.Lookup(name)
		st := stats[i]
		mode, _ := mode(ino.Mode)
		want := []string{
			fmt.Sprintf("Mode:  0%03o ", mode&0o7777),
			fmt.Sprintf("User: %5d   Group: %5d ", int32(ino.UID), int32(ino.GID)),
			fmt.Sprintf("mtime: 0x%08x:%08x", uint32(ino.ModTime), timeEpoch(ino.ModTime)),
		}
		switch ino.Mode.Type() {
		case 0:
			want = append(want, "Type: regular", fmt.Sprintf("Size: %d\n", ino.Size()), fmt.Sprintf("Links: %d ", links[ino]))
			if err := sameFile(filepath.Join(dir, strconv.Itoa(i)), ino); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case fs.ModeSymlink:
			want = append(want, "Type: symlink", fmt.Sprintf("Size: %d\n", len(ino.Target)))
			if len(ino.Target) < 60 {
				want = append(want, `Fast link dest: "`+ino.Target+`"`)
			}
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			want = append(want, fmt.Sprintf("Device major/minor number: %02d:%02d", ino.Major, ino.Minor))
		case fs.ModeNamedPipe:
			want = append(want, "Type: FIFO")
		case fs.ModeSocket:
			want = append(want, "Type: socket")
		}
		for k, v := range ino.Xattrs {
			if isACL(k) {
				v, _ = aclToDisk(v)
			}
			want = append(want, fmt.Sprintf("  %s (%d)", k, len(v)))
		}
		for _, w := range want {
			if !strings.Contains(st, w) {
				t.Errorf("%s: debugfs does not say %q:\n%s", name, w, st)
			}
		}
	}
}

// sameFile compares a file with an inode's content.
func sameFile(name string, ino *tree.Inode) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, f)
	if err != nil {
		return err
	}
	if ino.Content != nil {
		if _, err := io.Copy(want, io.NewSectionReader(ino.Content, 0, ino.Size())); err != nil {
			return err
		}
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%d bytes of content differ from the %d wanted", n, ino.Size())
	}
	return nil
}

// TestGRUB reads a BOOT partition with GRUB's own driver, files with extent
// trees of height 0 and 1 among them.
func TestGRUB(t *testing.T) {
	fstest := oracle.Tool(t, "grub-fstest")
	tr := boot(t)
	scattered := extent.New(700 * mib) // the backups of three groups lie within
	for off := int64(0); off < scattered.Size(); off += 50 * mib {
		if err := scattered.PutBytes(off, []byte(fmt.Sprint("at ", off))); err != nil {
			t.Fatal(err)
		}
	}
	add(t, tr, "A/scattered", &tree.Inode{Mode: 0o644, Content: scattered})
	add(t, tr, "grub/dir/entry", text("in a directory\n"))
	for i := range 500 {
		add(t, tr, fmt.Sprintf("grub/many/a-name-of-some-length-%03d", i), text(fmt.Sprint(i)))
	}
	add(t, tr, "grub/link", &tree.Inode{Mode: fs.ModeSymlink | 0o777, Target: "dir/entry"})
	img := writeImage(t, build(t, tr, sized(gib)))
	fsck(t, img)
	for _, name := range []string{"A/vmlinuz", "A/initramfs", "grub/grub.cfg", "grub/dir/entry", "grub/many/a-name-of-some-length-499"} {
		out, err := exec.Command(fstest, img, "cat", "(loop0)/"+name).Output()
		if err != nil {
			t.Errorf("%s: grub-fstest: %v", name, err)
			continue
		}
		want, _ := io.ReadAll(extent.Reader(tr.Lookup(name).Content))
		if !bytes.Equal(out, want) {
			t.Errorf("%s: %d bytes differ from the %d wanted", name, len(out), len(want))
		}
	}
	for off := int64(0); off < scattered.Size(); off += 50 * mib {
		want := fmt.Sprint("at ", off)
		out, err := exec.Command(fstest, img, "-s", fmt.Sprint(off), "-n", fmt.Sprint(len(want)), "cat", "(loop0)/A/scattered").Output()
		if err != nil || string(out) != want {
			t.Errorf("scattered: grub-fstest: %q, %v, want %q", out, err, want)
		}
	}
	if out, err := exec.Command(fstest, img, "cat", "(loop0)/grub/link").Output(); err != nil || string(out) != "in a directory\n" {
		t.Errorf("link: %q, %v", out, err)
	}
}

// TestResize grows unmounted file systems with resize2fs.
func TestResize(t *testing.T) {
	resize := oracle.Tool(t, "resize2fs")
	for _, tt := range []struct {
		from, to int64
		tr       *tree.Tree
	}{
		{2 * mib, 100 * mib, tree.New()},
		{64 * mib, 10 * gib, tree.New()},
		{64 * mib, 9 * gib, everything(t)},
		{300 * mib, 290*mib + 20*gib, everything(t)},
		{gib, 100 * mib, boot(t)},
	} {
		t.Run(fmt.Sprintf("%d to %d MiB", tt.from/mib, tt.to/mib), func(t *testing.T) {
			img := writeImage(t, build(t, tt.tr, sized(tt.from)))
			if tt.to > tt.from {
				if err := os.Truncate(img, tt.to); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command(resize, "-f", img, fmt.Sprintf("%dK", tt.to>>10)).CombinedOutput(); err != nil {
				t.Fatalf("resize2fs: %v %s", err, out)
			}
			fsck(t, img)
			src, err := extent.File(img)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Open(src, src.Size())
			if err != nil {
				t.Fatal(err)
			}
			if got.Size < tt.to-3*mib || got.Size > tt.to {
				t.Errorf("size %d, wanted %d", got.Size, tt.to)
			}
			sameTree(t, got.Tree, tt.tr)
		})
	}
}

// mount attaches img to a loop device and mounts it.
func mount(t *testing.T, img string) (dev, dir string, unmount func()) {
	t.Helper()
	for try := 0; ; try++ {
		out, err := exec.Command(oracle.Tool(t, "losetup"), "-f", "--show", img).Output()
		if err == nil {
			dev = strings.TrimSpace(string(out))
			break
		}
		if try == 40 {
			t.Skipf("SKIPPED: no free loop device: %v", err)
		}
		time.Sleep(250 * time.Millisecond)
	}
	detach := func() {
		if out, err := exec.Command(oracle.Tool(t, "losetup"), "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v %s", err, out)
		}
	}
	dir = t.TempDir()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		detach()
		t.Fatalf("mount: %v", err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
		detach()
	}
	t.Cleanup(unmount)
	return dev, dir, unmount
}

// TestKernel reads everything through the kernel, then writes, and lets e2fsck
// judge the result.
func TestKernel(t *testing.T) {
	oracle.Root(t)
	tr := everything(t)
	for i := range 2000 {
		add(t, tr, fmt.Sprintf("many/file-%04d", i), &tree.Inode{Mode: 0o644})
	}
	img := writeImage(t, build(t, tr, sized(300*mib)))
	_, dir, unmount := mount(t, img)
	for name, ino := range tr.All() {
		if err := sameOnDisk(filepath.Join(dir, name), ino); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ino.Mode.IsDir() {
			want := len(tr.Children(name))
			if name == "." {
				want++ // lost+found
			}
			if list, err := os.ReadDir(filepath.Join(dir, name)); err != nil || len(list) != want {
				t.Errorf("%s: %d entries, %v, want %d", name, len(list), err, want)
			}
		}
	}
	// An upgrade: a second slot, and more entries in directories of all sizes.
	if err := os.MkdirAll(filepath.Join(dir, "B"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"B/vmlinuz": 12 * mib, "B/initramfs": 40 * mib, "grub/grub.cfg.new": 14} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o644); err != nil {
			t.Error(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, "grub/grub.cfg.new"), filepath.Join(dir, "grub/grub.cfg")); err != nil {
		t.Error(err)
	}
	for i := range 500 {
		for _, sub := range []string{"many", "new"} {
			name := filepath.Join(dir, sub, fmt.Sprintf("written-by-the-kernel-%04d", i))
			os.Mkdir(filepath.Dir(name), 0o755)
			if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 1000 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("many/file-%04d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "A")); err != nil {
		t.Error(err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "x/large"), "user.more", []byte("more"), 0); err != nil {
		t.Error(err)
	}
	unmount()
	fsck(t, img)
}

func sameOnDisk(name string, ino *tree.Inode) error {
	fi, err := os.Lstat(name)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode() != ino.Mode || st.Uid != ino.UID || st.Gid != ino.GID || st.Mtim.Sec != ino.ModTime ||
		unix.Major(st.Rdev) != ino.Major || unix.Minor(st.Rdev) != ino.Minor {
		return fmt.Errorf("got %v %d:%d time %d, want %v %d:%d time %d", fi.Mode(), st.Uid, st.Gid, st.Mtim.Sec, ino.Mode, ino.UID, ino.GID, ino.ModTime)
	}
	if ino.Target != "" {
		if to, err := os.Readlink(name); to != ino.Target {
			return fmt.Errorf("target %q, %v, want %q", to, err, ino.Target)
		}
	}
	for k, want := range ino.Xattrs {
		got := make([]byte, 70_000)
		n, err := unix.Lgetxattr(name, k, got)
		if err != nil || !bytes.Equal(got[:n], want) {
			return fmt.Errorf("%s: %q, %v, want %q", k, got[:max(n, 0)], err, want)
		}
	}
	if ino.Mode.IsRegular() {
		return sameFile(name, ino)
	}
	return nil
}

// TestGrowOnline grows a mounted file system, which takes CAP_SYS_RESOURCE.
func TestGrowOnline(t *testing.T) {
	oracle.Root(t)
	for _, to := range []int64{10 * gib, 200 * gib} { // within the reserved descriptors, and beyond them
		t.Run(fmt.Sprint(to/gib), func(t *testing.T) {
			img := writeImage(t, build(t, everything(t), sized(64*mib)))
			if err := os.Truncate(img, to); err != nil {
				t.Fatal(err)
			}
			dev, dir, unmount := mount(t, img)
			if out, err := exec.Command(oracle.Tool(t, "resize2fs"), dev).CombinedOutput(); err != nil {
				if bytes.Contains(out, []byte("Permission denied")) {
					t.Skip("SKIPPED: needs CAP_SYS_RESOURCE")
				}
				t.Fatalf("resize2fs: %v %s", err, out)
			}
			if err := os.WriteFile(filepath.Join(dir, "after"), make([]byte, 100*mib), 0o644); err != nil {
				t.Error(err)
			}
			unmount()
			fsck(t, img)
		})
	}
}

// TestDumpe2fs checks what a person would look at.
func TestDumpe2fs(t *testing.T) {
	img := writeImage(t, build(t, boot(t), sized(64*mib)))
	out, err := exec.Command(oracle.Tool(t, "dumpe2fs"), "-h", img).Output()
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"Filesystem volume name": "KILN-TEST",
		"Filesystem UUID":        "9e010203-0405-4607-8809-0a0b0c0d0e0f",
		"Filesystem features":    "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		"Filesystem state":       "clean",
		"Inode count":            "8192",
		"Block count":            "16384",
		"Reserved GDT blocks":    "7",
		"Directory Hash Seed":    "9e010203-0405-4607-8809-0a0b0c0d0e0f",
		"Journal backup":         "inode blocks",
		"Total journal size":     "4096k",
	} {
		re := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(field) + `: +(.*?)\s*$`)
		m := re.FindSubmatch(out)
		if m == nil || string(m[1]) != want {
			t.Errorf("%s: %q, want %q", field, m, want)
		}
	}
}
