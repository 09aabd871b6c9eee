package extensions

import (
	"fmt"
	"path"
	"strings"

	"github.com/kilnhq/kiln/machine/extservice"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxService is what a node takes for a service, in bytes.
const maxService = 64 << 10

// vetServices refuses services that a node would not start. prefix goes before
// paths in errors.
func vetServices(t *tree.Tree, prefix string) error {
	dir := strings.TrimPrefix(extservice.Dir, "/")
	for _, name := range t.Children(dir) {
		if path.Ext(name) != ".yaml" {
			continue
		}
		name = path.Join(dir, name)
		data, err := readFile(t, name, maxService)
		if err != nil {
			return err
		}
		s, err := extservice.Parse(prefix+name, data)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		root := path.Join(strings.TrimPrefix(extservice.RootDir, "/"), s.Name)
		if ino := t.Lookup(root); s.RunnerMode != extservice.RunHost && (ino == nil || !ino.Mode.IsDir()) {
			return fmt.Errorf("%w: %s%s: service %s has no root file system, want a directory %s%s", ErrFormat, prefix, name, s.Name, prefix, root)
		}
	}
	return nil
}
