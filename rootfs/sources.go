package rootfs

import (
	"errors"

	"github.com/kilnhq/kiln/kernel/deb"
)

// ErrNoPackage is wrapped by the errors for a Debian package that is in none of
// the package directories.
var ErrNoPackage = errors.New("not found")

// OpenPackage opens the Debian package of that name, for the architecture or for
// all, in the first of the package directories that has it.
func (s Sources) OpenPackage(name string) (*deb.Package, error) {
	b, err := (&Recipe{path: name}).builder(s)
	if err != nil {
		return nil, err
	}
	return b.openPackage(name)
}
