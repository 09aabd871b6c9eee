//go:build linux

package test

import (
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/profiles"
	"golang.org/x/sys/unix"
)

// Every built-in profile can be built from the base: its platform's drivers are
// there, its size is what the platform takes, and what comes out is the same for
// another user, elsewhere, at another time, with another number of processors.
func TestProfiles(t *testing.T) {
	dir := inputs(t)
	places := make([]string, 2)
	for i, name := range []string{"here", "some other place"} {
		places[i] = filepath.Join(dir, name)
		if err := os.Mkdir(places[i], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	other := os.Geteuid()
	if other == 0 {
		other = nobody
		if err := os.Chown(places[1], nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	build := func(t *testing.T, profile string, args ...string) {
		t.Helper()
		var outputs [2]map[string]string
		for i, work := range places {
			cmd := exec.Command(filepath.Join(dir, "kiln"), append([]string{"build", profile, "--base", filepath.Join(dir, "base"), "--extension", filepath.Join(dir, "extension"),
				"--progress", "none", "--output", work + "/", "--cache", filepath.Join(work, "cache")}, args...)...)
			cmd.Dir = work
			if i == 1 {
				cmd.Env = []string{"PATH=", "TZ=Pacific/Kiritimati", "LC_ALL=tr_TR.UTF-8", "GOMAXPROCS=1"}
				if other != os.Geteuid() {
					cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				}
				old := unix.Umask(0o077)
				defer unix.Umask(old)
			}
			output(t, cmd)
			outputs[i] = digestTree(t, work)
		}
		if !maps.Equal(outputs[0], outputs[1]) {
			t.Errorf("%v here, %v elsewhere", outputs[0], outputs[1])
		}
		if len(args) == 0 {
			checkSize(t, profile, places[0])
		}
		for _, work := range places {
			for file := range outputs[0] {
				if err := os.RemoveAll(filepath.Join(work, strings.Split(file, "/")[0])); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, name := range profiles.Names() {
		t.Run(name, func(t *testing.T) { build(t, name) })
	}
	// All that there is, of one disk, at once. Names of files tell two kinds of
	// VMDK apart no more than of VHD.
	t.Run("all formats", func(t *testing.T) {
		all := slices.DeleteFunc(imager.Formats(), func(f string) bool {
			return f == "vmdk-sparse" || f == "vhd-dynamic"
		})
		build(t, "metal", "--format", strings.Join(all, ","), "--size", "1GiB")
	})
}

// digestTree returns the digests of all files in a directory but the cache.
func digestTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if e != nil && e.Name() == "cache" {
				return fs.SkipDir
			}
			return err
		}
		rel, err := filepath.Rel(dir, path)
		out[rel] = digest(t, path)
		return err
	})
	if err != nil || len(out) < 4 { // it, its digest, description and parts
		t.Fatalf("%v, %v", out, err)
	}
	return out
}

// checkSize compares the disk's size with what the profile says of its platform.
func checkSize(t *testing.T, name, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".spdx.json") })
	if len(files) != 1 {
		t.Fatalf("descriptions %v, want one", files)
	}
	var plain struct{ Disk struct{ Size int64 } }
	if err := json.Unmarshal(read(t, files[0]), &plain); err != nil {
		t.Fatal(err)
	}
	p, err := profiles.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	size := profiles.Size(plain.Disk.Size)
	if size == 0 || size%p.Disk.Multiple != 0 || size < p.Disk.Minimum || p.Disk.Maximum > 0 && size > p.Disk.Maximum {
		t.Errorf("a disk of %d bytes, want a multiple of %s, at least %s and at most %s", size, p.Disk.Multiple, p.Disk.Minimum, p.Disk.Maximum)
	}
}
