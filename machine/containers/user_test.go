//go:build linux

package containers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/types"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/machine/containers/static"
)

// A user's name is looked up in the image, which is mounted for that, and a link
// in it does not lead to the node's accounts.
func TestMountRoot(t *testing.T) {
	oracle.Root(t)
	dir := t.TempDir()
	lower, other := filepath.Join(dir, "lower"), filepath.Join(dir, "other")
	if err := errors.Join(os.Mkdir(other, 0o755), os.MkdirAll(filepath.Join(lower, "etc"), 0o755),
		os.WriteFile(filepath.Join(lower, "etc/passwd"), []byte("web:x:7:8::/:\n"), 0o600), os.Symlink("/etc/group", filepath.Join(lower, "etc/group"))); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*types.Mount{
		{Type: "bind", Source: lower, Options: []string{"rbind", "ro"}},
		{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + lower + ":" + other, "ro"}},
	} {
		at := filepath.Join(dir, "at")
		open := func() (fs.FS, func() error, error) { return mountRoot([]*types.Mount{m}, at) }
		id, err := identify(&static.Container{}, "web:9", open)
		if err != nil || id.uid != 7 || id.gid != 9 {
			t.Errorf("%s: %+v, %v", m.Type, id, err)
		}
		if _, err := identify(&static.Container{}, "web:root", open); err == nil {
			t.Errorf("%s: a group of this machine is one of the image", m.Type)
		}
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: it is still mounted: %v", m.Type, err)
		}
	}
	if _, _, err := mountRoot(nil, dir); err == nil || err.Error() != "a root file system of 0 mounts, want one" {
		t.Errorf("%v", err)
	}
}
