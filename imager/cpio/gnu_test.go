package cpio

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// describeUnpacked leaves out the times that GNU cpio does not set.
func describeUnpacked(t testing.TB, ino *tree.Inode) string {
	c := *ino
	if ino.Mode&(fs.ModeDir|fs.ModeSymlink) != 0 {
		c.ModTime = 0
	}
	return describe(t, &c)
}

// unpackGNU unpacks archive with GNU cpio and returns the directory.
func unpackGNU(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(oracle.Tool(t, "cpio"), "-idm", "--quiet", "--no-absolute-filenames")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	return dir
}

// onDisk returns the tree of a directory.
func onDisk(t *testing.T, dir string) *tree.Tree {
	t.Helper()
	tr := tree.New()
	seen := map[uint64]*tree.Inode{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil || rel == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		ino := seen[st.Ino]
		if ino == nil {
			ino = &tree.Inode{Mode: fi.Mode(), UID: st.Uid, GID: st.Gid, ModTime: fi.ModTime().Unix()}
			switch {
			case fi.Mode().IsRegular():
				b, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				ino.Content = extent.Bytes(b)
			case fi.Mode()&fs.ModeSymlink != 0:
				if ino.Target, err = os.Readlink(name); err != nil {
					return err
				}
			case fi.Mode()&fs.ModeDevice != 0:
				ino.Major = uint32(st.Rdev>>8&0xfff | st.Rdev>>32&^0xfff)
				ino.Minor = uint32(st.Rdev&0xff | st.Rdev>>12&^0xff)
			}
			seen[st.Ino] = ino
		}
		return tr.Add(rel, ino)
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func sameTrees(t *testing.T, got, want *tree.Tree) {
	t.Helper()
	a, b := maps.Collect(got.All()), maps.Collect(want.All())
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if name == "." {
			continue
		}
		if a[name] == nil {
			t.Errorf("%s is missing", name)
		} else if g, w := describeUnpacked(t, a[name]), describeUnpacked(t, b[name]); g != w {
			t.Errorf("%s: %s\nwant %s", name, g, w)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d files, want %d", len(a), len(b))
	}
}

func TestGNUUnpacks(t *testing.T) {
	want := plain(t)
	aligned, err := BuildAligned(want, 2048)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(extent.Reader(aligned))
	if err != nil {
		t.Fatal(err)
	}
	sameTrees(t, onDisk(t, unpackGNU(t, archive)), want)
	got := onDisk(t, unpackGNU(t, build(t, want)))
	sameTrees(t, got, want)
	for _, names := range [][]string{{"etc/hard1", "etc/hard2", "hard3"}, {"none1", "none2"}} {
		for _, n := range names[1:] {
			if got.Lookup(names[0]) != got.Lookup(n) {
				t.Errorf("%s and %s are not linked", names[0], n)
			}
		}
	}
}

func TestGNUUnpacksDevices(t *testing.T) {
	oracle.Root(t)
	sameTrees(t, onDisk(t, unpackGNU(t, build(t, full(t)))), full(t))
}

func TestGNULists(t *testing.T) {
	cmd := exec.Command(oracle.Tool(t, "cpio"), "-itvn", "--quiet")
	cmd.Stdin = bytes.NewReader(build(t, full(t)))
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	squeezed := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
		"crw------- 1 0 0 10, 300 Jan 1 1970 dev/large",
		"brw-rw---- 1 70000 4294967294 259, 70000 Jan 1 1970 dev/block",
		"srw------- 1 0 0 0 Jan 1 1970 dev/socket",
		"drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
		"drwx------ 2 %d %d 0 Sep 13 2020 etc/deep",
		"100001 Nov 14 2023 init",
		"etc/link -> ../init",
	} {
		if strings.Contains(want, "%d") {
			want = fmt.Sprintf(want, os.Getuid(), os.Getgid())
		}
		if !strings.Contains(squeezed, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if n, want := strings.Count(string(out), "\n"), full(t).Len()-1; n != want {
		t.Errorf("%d entries, want %d", n, want)
	}
}

func TestReadGNU(t *testing.T) {
	want := plain(t)
	dir := unpackGNU(t, build(t, want))
	for _, format := range []string{"newc", "crc"} {
		t.Run(format, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", "find . -depth -print0 | "+oracle.Tool(t, "cpio")+" -0o --quiet -H "+format)
			cmd.Dir = dir
			image, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			segments, err := Read(bytes.NewReader(image), int64(len(image)), 0)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]*tree.Inode{}
			for _, e := range segments[0].Entries {
				got[e.Name] = e.Inode
			}
			if got["hard3"] != got["etc/hard1"] || got["hard3"] != got["etc/hard2"] || got["none1"] != got["none2"] {
				t.Error("hard links are lost")
			}
			if got["."] == nil || len(got) != want.Len() {
				t.Errorf("%d entries, want %d with the root", len(got), want.Len())
			}
			for name, ino := range want.All() {
				if name == "." {
					continue
				}
				if g, w := describeUnpacked(t, got[name]), describeUnpacked(t, ino); g != w {
					t.Errorf("%s: %s\nwant %s", name, g, w)
				}
			}
		})
	}
}
