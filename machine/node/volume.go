//go:build linux

package node

import (
	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/machine/platform/store"
)

// Anew says whether an EPHEMERAL that cannot be repaired is to be made anew: if the
// configuration that is kept in stateDir says so.
func Anew(stateDir string) bool {
	state := store.Store{Dir: stateDir}
	for _, load := range []func() ([]byte, error){state.Load, state.Previous} {
		data, err := load()
		if err != nil {
			continue
		}
		c, err := config.Parse(config.Placeholder, data)
		if err != nil {
			continue
		}
		for _, volume := range c.Volumes {
			if volume.Name == config.Ephemeral {
				return volume.Damaged == config.DamagedRecreate
			}
		}
		break
	}
	return false
}
