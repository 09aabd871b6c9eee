//go:build linux

package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/registry"
	"github.com/kilnhq/kiln/machine/service"
)

// Where programs look for the certificates that they trust, in the directory
// rootsDir.
const (
	rootsDir  = "/etc/ssl/certs"
	rootsFile = "ca-certificates.crt"
)

// trust is what the node has done about registries and trusted roots.
type trust struct {
	bound map[string]bool // directories of /etc that are those of etcDir
	image *os.File        // the certificates of the image, nil as long as there are no others
}

// setRegistries writes what the configuration says of container registries, and the
// certificates that programs trust. containerd reads some of that only when it
// starts, and is started anew; containers go on meanwhile.
func (n *Node) setRegistries(c *config.Config) {
	restart := false
	var failed []error
	note := func(changed bool, err error) {
		restart = restart || changed
		failed = append(failed, err)
	}
	if files := registry.Hosts(c); len(files) > 0 || n.trust.bound[registry.HostsDir] {
		dir, err := n.bindDir(registry.HostsDir)
		if err == nil {
			_, err = registry.Sync(dir, files, 0o644) // which is read each time
		}
		note(false, err)
	}
	note(secretFile(registry.DaemonFile, registry.Daemon(c)))
	_, err := secretFile(registry.ClientFile, registry.Client(c))
	note(false, err)
	note(n.setRoots(c))
	if err := errors.Join(failed...); err != nil {
		n.remark("registries", "%v", err)
	}
	if !restart {
		return
	}
	if err := n.services.Restart(ContainerdName); err != nil && !errors.Is(err, service.ErrUnknown) { // not started yet
		n.remark("registries", "%v", err)
	}
}

// setRoots writes the certificates that programs trust, and reports whether they
// have changed.
func (n *Node) setRoots(c *config.Config) (bool, error) {
	if len(c.TrustedRoots) == 0 && n.trust.image == nil {
		return false, nil
	}
	if n.trust.image == nil {
		f, err := os.Open(filepath.Join(rootsDir, rootsFile))
		if err != nil {
			return false, fmt.Errorf("trusted roots: %w", err)
		}
		n.trust.image = f // it is there as long as this is open, whatever is mounted over it
	}
	fi, err := n.trust.image.Stat()
	if err != nil {
		return false, err
	}
	image := make([]byte, fi.Size())
	if _, err := n.trust.image.ReadAt(image, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("trusted roots: %w", err)
	}
	dir := filepath.Join(etcDir, rootsDir[len("/etc"):])
	changed, err := registry.Sync(dir, map[string][]byte{rootsFile: registry.Bundle(image, c)}, 0o644)
	if err == nil {
		_, err = n.bindDir(rootsDir)
	}
	return changed, err
}

// bindDir makes a directory of /etc one that can be written to, and returns where. It
// can be replaced file by file then, which a file that is mounted over another cannot.
func (n *Node) bindDir(target string) (string, error) {
	dir := filepath.Join(etcDir, target[len("/etc"):])
	if n.trust.bound[target] {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind %s over %s: %w", dir, target, err)
	}
	if n.trust.bound == nil {
		n.trust.bound = map[string]bool{}
	}
	n.trust.bound[target] = true
	return dir, nil
}

// secretFile makes a file have a content that only the superuser may read, or not be
// there, and reports whether that has changed anything.
func secretFile(name string, data []byte) (changed bool, err error) {
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	switch {
	case data == nil && old == nil:
		return false, nil
	case data == nil:
		return true, os.Remove(name)
	case string(old) == string(data):
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o711); err != nil {
		return false, err
	}
	temporary := name + ".new"
	if err := errors.Join(os.RemoveAll(temporary), os.WriteFile(temporary, data, 0o600)); err != nil {
		return false, err
	}
	return true, os.Rename(temporary, name)
}
