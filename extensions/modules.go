package extensions

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/module"
	"github.com/kilnhq/kiln/rootfs/tree"
)

// maxModule bounds one kernel module, as it is on disk.
const maxModule = 256 << 20

// Modules returns the facts about the kernel modules in the extension, in the
// order of their paths. Signatures are verified with the certificates the kernel
// trusts.
func (e *Extension) Modules(ctx context.Context, trusted []*x509.Certificate) ([]gate.Module, error) {
	var names []string
	for name, ino := range e.RootFS.All() {
		if strings.HasPrefix(name, ModulesDir+"/") && ino.Mode.IsRegular() && module.IsFile(name) {
			names = append(names, name)
		}
	}
	out := make([]gate.Module, len(names))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, name := range names {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data, err := readAll(e.RootFS.Lookup(name))
			if err != nil {
				return fmt.Errorf("extension %s: %s: %w", e, name, err)
			}
			if out[i], err = gate.Read(name, data, trusted); err != nil {
				return fmt.Errorf("%w: extension %s: %w", ErrIncompatible, e, err)
			}
			return nil
		})
	}
	return out, group.Wait()
}

func readAll(ino *tree.Inode) ([]byte, error) {
	if ino.Size() > maxModule {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrHostile, ino.Size(), maxModule)
	}
	data := make([]byte, ino.Size())
	if len(data) == 0 {
		return data, nil
	}
	_, err := io.ReadFull(io.NewSectionReader(ino.Content, 0, ino.Size()), data)
	return data, err
}
