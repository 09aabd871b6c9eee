//go:build linux

package stage

import (
	"context"
	"path/filepath"
	"time"

	"github.com/kilnhq/kiln/machine/devlinks"
	"github.com/kilnhq/kiln/machine/uevent"
)

// nodes is told of all devices.
type nodes interface {
	Present(dir string, e uevent.Event) // was there before
	Handle(e uevent.Event)
	Prune() // what went unnoticed is gone
}

// linked is how long the start waits for the links of devices. A disk that does not
// answer gets them whenever it does.
const linked = 5 * time.Second

// keepLinks keeps the links in /dev/disk, and the groups and modes of device nodes; those
// whose drivers wait to be needed are made, as the kernel's modules directory says.
func (d *devices) keepLinks(modules string) *devlinks.Keeper {
	k := devlinks.New("/sys", "/dev")
	k.Fault = func(err error) { log("%v", err) }
	if err := k.Watch(context.Background()); err != nil {
		log("%v", err)
	}
	if err := k.MakeStatic(filepath.Join(modules, "modules.devname")); err != nil {
		log("%v", err)
	}
	d.nodes = k
	return k
}
