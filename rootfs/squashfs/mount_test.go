package squashfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// mount mounts an image through a loop device and returns where.
func mount(t *testing.T, image string) string {
	t.Helper()
	oracle.Root(t)
	losetup := oracle.Tool(t, "losetup")
	var dev string
	for try := 0; ; try++ {
		out, err := exec.Command(losetup, "-r", "-f", "--show", image).CombinedOutput()
		if err == nil {
			dev = strings.TrimSpace(string(out))
			break
		}
		if try == 100 {
			t.Fatalf("losetup: %v: %s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
	dir := t.TempDir()
	err := unix.Mount(dev, dir, "squashfs", unix.MS_RDONLY, "")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
		if out, err := exec.Command(losetup, "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	return dir
}

// what is compared between a tree and a directory.
type what struct {
	owner, devices, xattrs bool
	specialModes           bool // modes of files that an unprivileged extractor cannot make
}

func everything() what {
	return what{owner: true, devices: true, xattrs: true, specialModes: true}
}

// compare checks that the directory at root holds exactly tr.
func compare(t *testing.T, tr *tree.Tree, root string, w what) {
	t.Helper()
	errs := 0
	fail := func(format string, args ...any) {
		if errs++; errs <= 20 {
			t.Errorf(format, args...)
		}
	}
	links := map[*tree.Inode]uint64{}  // hard links, or subdirectories + 2
	inodes := map[*tree.Inode]uint64{} // to the number the kernel shows
	owners := map[uint64]*tree.Inode{}
	for name, ino := range tr.All() {
		links[ino]++
		if ino.Mode.IsDir() {
			links[ino]++
			if name != "." {
				links[tr.Lookup(filepath.Dir(name))]++
			}
		}
	}
	seen := 0
	for name, ino := range tr.All() {
		p := filepath.Join(root, name)
		if !w.devices && ino.Mode&fs.ModeDevice != 0 {
			continue
		}
		seen++
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			fail("%q: %v", name, err)
			continue
		}
		got, want := st.Mode, unixMode(ino.Mode)
		if !w.specialModes {
			got, want = got&^0o7000, want&^0o7000
		}
		if got != want {
			fail("%q: mode %o, want %o", name, got, want)
		}
		if w.owner && (st.Uid != ino.UID || st.Gid != ino.GID) {
			fail("%q: owner %d:%d, want %d:%d", name, st.Uid, st.Gid, ino.UID, ino.GID)
		}
		if want := min(max(ino.ModTime, 0), math.MaxUint32); st.Mtim.Sec != want {
			fail("%q: mtime %d, want %d", name, st.Mtim.Sec, want)
		}
		if w.devices && uint64(st.Nlink) != links[ino] { // a skipped device is a missing link
			fail("%q: %d links, want %d", name, st.Nlink, links[ino])
		}
		if n, ok := inodes[ino]; ok && n != st.Ino {
			fail("%q: not linked to its other names", name)
		} else if owners[st.Ino] != nil && owners[st.Ino] != ino {
			fail("%q: linked to a file that is another one", name)
		}
		inodes[ino], owners[st.Ino] = st.Ino, ino
		if ino.Mode&fs.ModeDevice != 0 && st.Rdev != unix.Mkdev(ino.Major, ino.Minor) {
			fail("%q: device %d:%d, want %d:%d", name, unix.Major(st.Rdev), unix.Minor(st.Rdev), ino.Major, ino.Minor)
		}
		switch ino.Mode.Type() {
		case fs.ModeSymlink:
			if got, err := os.Readlink(p); err != nil || got != ino.Target {
				fail("%q: link to %q, %v, want %q", name, got, err, ino.Target)
			}
		case fs.ModeDir:
			entries, err := os.ReadDir(p)
			if err != nil {
				fail("%q: %v", name, err)
			}
			var got []string
			for _, e := range entries {
				got = append(got, e.Name())
			}
			want := slices.Clone(tr.Children(name))
			if !w.devices {
				want = slices.DeleteFunc(want, func(c string) bool { return tr.Lookup(path.Join(name, c)).Mode&fs.ModeDevice != 0 })
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				fail("%q: holds %d names, want %d", name, len(got), len(want))
			}
		case 0:
			if st.Size != ino.Size() {
				fail("%q: %d bytes, want %d", name, st.Size, ino.Size())
			}
			if ino.Size() == 0 || ino.Mode.Perm()&0o400 == 0 && os.Geteuid() != 0 {
				break
			}
			want := make([]byte, ino.Size())
			if _, err := ino.Content.ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, want) {
				fail("%q: content of %d bytes differs, want %d (%v)", name, len(got), len(want), err)
			}
		}
		if w.xattrs {
			got, err := xattrs(p)
			if err != nil {
				fail("%q: %v", name, err)
			}
			if !maps.EqualFunc(got, ino.Xattrs, bytes.Equal) {
				fail("%q: xattrs %q, want %q", name, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(ino.Xattrs)))
			}
		}
	}
	if errs > 20 {
		t.Errorf("… %d differences", errs)
	}
	if seen < 10 {
		t.Errorf("only %d paths compared", seen)
	}
}

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, value := range map[fs.FileMode]uint32{fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX} {
		if m&bit != 0 {
			mode |= value
		}
	}
	return mode | map[fs.FileMode]uint32{
		0: unix.S_IFREG, fs.ModeDir: unix.S_IFDIR, fs.ModeSymlink: unix.S_IFLNK, fs.ModeDevice: unix.S_IFBLK,
		fs.ModeDevice | fs.ModeCharDevice: unix.S_IFCHR, fs.ModeNamedPipe: unix.S_IFIFO, fs.ModeSocket: unix.S_IFSOCK,
	}[m.Type()]
}

func xattrs(name string) (map[string][]byte, error) {
	n, err := unix.Llistxattr(name, nil)
	if err != nil || n == 0 {
		return nil, err
	}
	list := make([]byte, n)
	if n, err = unix.Llistxattr(name, list); err != nil {
		return nil, fmt.Errorf("llistxattr: %w", err)
	}
	got := map[string][]byte{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if key == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return nil, fmt.Errorf("lgetxattr %s: %w", key, err)
		}
		got[key] = value[:n]
	}
	return got, nil
}

func TestKernelMount(t *testing.T) {
	oracle.Root(t)
	for _, blockSize := range []int{4 << 10, 128 << 10, 1 << 20} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			tr := torture(t, blockSize, blockSize == 128<<10)
			root := mount(t, write(t, tr, Options{BlockSize: blockSize}))
			compare(t, tr, root, everything())
		})
	}
}

func TestEmptyTree(t *testing.T) {
	image := write(t, tree.New(), Options{})
	out, err := exec.Command(oracle.Tool(t, "unsquashfs"), "-lln", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "squashfs-root") {
		t.Errorf("unsquashfs: %v\n%s", err, out)
	}
	if os.Geteuid() == 0 {
		entries, err := os.ReadDir(mount(t, image))
		if err != nil || len(entries) != 0 {
			t.Errorf("%v, %v", entries, err)
		}
	}
}

// unsquashfs extracts an image and returns where. Without root it leaves out
// devices, owners and extended attributes.
func unsquashfs(t *testing.T, image string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	args := []string{"-no-progress", "-quiet", "-d", dir, image}
	if os.Geteuid() != 0 {
		args = append([]string{"-ignore-errors", "-no-xattrs"}, args...)
	}
	out, err := exec.Command(oracle.Tool(t, "unsquashfs"), args...).CombinedOutput()
	t.Cleanup(func() { // make everything removable
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
	// Unprivileged, it exits with 2 after the devices it could not make.
	if err != nil && !(os.Geteuid() != 0 && strings.Contains(err.Error(), "exit status 2")) {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	return dir
}

func TestUnsquashfs(t *testing.T) {
	tr := torture(t, 64<<10, false)
	image := write(t, tr, Options{BlockSize: 64 << 10, Level: zstd.SpeedFastest})
	root := os.Geteuid() == 0
	compare(t, tr, unsquashfs(t, image), what{owner: root, devices: root, xattrs: root, specialModes: root})
}

// TestListing compares what unsquashfs lists with the tree: type, mode, owner,
// size, time and name of all paths. It needs no privilege.
func TestListing(t *testing.T) {
	tr := torture(t, 8<<10, true)
	image := write(t, tr, Options{BlockSize: 8 << 10, Level: zstd.SpeedFastest})
	cmd := exec.Command(oracle.Tool(t, "unsquashfs"), "-lln", "-UTC", "-d", "", image)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(strings.ReplaceAll(string(out), "new\nline", "new?line")) {
		mode, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		owner, rest, _ := strings.Cut(rest, " ")
		size, rest, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		if mode[0] == 'b' || mode[0] == 'c' { // a minor number of more than 8 bits is listed wrong
			_, rest, _ = strings.Cut(strings.TrimLeft(line[strings.IndexByte(line, ',')+1:], " "), " ")
			rest = strings.TrimSuffix(rest, "\n")
		}
		if mode[0] != '-' && mode[0] != 'l' {
			size = ""
		}
		listed[strings.Join([]string{mode, owner, size, rest}, " ")] = true
	}
	missing := 0
	for name, ino := range tr.All() {
		size := ""
		switch ino.Mode.Type() {
		case 0:
			size = fmt.Sprint(ino.Size())
		case fs.ModeSymlink:
			size = fmt.Sprint(len(ino.Target))
		}
		mtime := time.Unix(min(max(ino.ModTime, 0), math.MaxUint32), 0).UTC().Format("2006-01-02 15:04")
		want := fmt.Sprintf("%s %d/%d %s %s /%s", modeString(ino.Mode), ino.UID, ino.GID, size, mtime, strings.ReplaceAll(name, "\n", "?"))
		want = strings.TrimSuffix(want, "/.")
		if ino.Target != "" {
			want += " -> " + ino.Target
		}
		if !listed[want] {
			if missing++; missing <= 20 {
				t.Errorf("not listed: %q", want)
			}
		}
	}
	if len(listed) != tr.Len() {
		t.Errorf("%d paths listed, want %d; %d missing", len(listed), tr.Len(), missing)
	}
}

// modeString formats a mode as ls(1) does.
func modeString(m fs.FileMode) string {
	s := []byte("?" + m.Perm().String()[1:])
	s[0] = map[fs.FileMode]byte{
		0: '-', fs.ModeDir: 'd', fs.ModeSymlink: 'l', fs.ModeDevice: 'b', fs.ModeDevice | fs.ModeCharDevice: 'c',
		fs.ModeNamedPipe: 'p', fs.ModeSocket: 's',
	}[m.Type()]
	for at, bit := range map[int]fs.FileMode{3: fs.ModeSetuid, 6: fs.ModeSetgid, 9: fs.ModeSticky} {
		if m&bit != 0 {
			c := byte('s')
			if at == 9 {
				c = 't'
			}
			if s[at] == '-' {
				c -= 'a' - 'A'
			}
			s[at] = c
		}
	}
	return string(s)
}
