package devlinks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A static is a device node that is there before its driver, which the kernel loads when
// the node is opened.
type static struct {
	name         string // below /dev
	kind         uint32 // S_IFCHR or S_IFBLK
	major, minor uint32
}

// parseStatic reads modules.devname of depmod(8): module, name of the node, and type with
// numbers, as in "fuse fuse c10:229". What has another form is left out.
func parseStatic(data []byte) []static {
	var list []static
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 3 || strings.HasPrefix(f[0], "#") || !filepath.IsLocal(f[1]) {
			continue
		}
		s := static{name: f[1]}
		var kind rune
		if n, err := fmt.Sscanf(f[2], "%c%d:%d", &kind, &s.major, &s.minor); err != nil || n != 3 {
			continue
		}
		switch kind {
		case 'c':
			s.kind = unix.S_IFCHR
		case 'b':
			s.kind = unix.S_IFBLK
		default:
			continue
		}
		list = append(list, s)
	}
	return list
}

// MakeStatic makes the device nodes that the file modules.devname lists, as far as they
// are not there: /dev/fuse and /dev/net/tun are, before anybody has loaded their drivers.
func (k *Keeper) MakeStatic(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without modules
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, s := range parseStatic(data) {
		failed = append(failed, k.makeStatic(s))
	}
	return errors.Join(failed...)
}

func (k *Keeper) makeStatic(s static) error {
	name := filepath.Join(k.dev, s.name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	err := unix.Mknod(name, s.kind|0o600, int(unix.Mkdev(s.major, s.minor)))
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mknod %s: %w", name, err)
	}
	p, ok := permissionOf(device{dir: name}, "misc")
	if !ok {
		return nil
	}
	if err := unix.Lchown(name, 0, p.group); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.Chmod(name, p.mode)
}
