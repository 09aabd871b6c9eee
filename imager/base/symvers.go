package base

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/imager/extent"
	"github.com/kilnhq/kiln/rootfs"
)

// symvers returns Module.symvers, the kernel's own list of exported symbols with
// their CRCs, out of the distribution's package of kernel headers. It is nil if
// there is no such package among the sources.
func (r Request) symvers(ctx context.Context, release string) (extent.Source, error) {
	d, err := r.Sources.OpenPackage("linux-headers-" + release)
	if errors.Is(err, rootfs.ErrNoPackage) {
		r.Log.Warn("no package with the kernel's Module.symvers: extensions' symbols can only be checked against other modules",
			"want", "linux-headers-"+release)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	name := "usr/src/linux-headers-" + release + "/Module.symvers"
	t, err := d.Tree(ctx, func(n string) bool { return n == name })
	if err != nil {
		return nil, err
	}
	content := file(t, name)
	if content == nil {
		return nil, fmt.Errorf("%s: no file /%s", d.Name(), name)
	}
	return content, nil
}
