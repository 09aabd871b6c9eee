//go:build linux

package node

import (
	"os"
	"strings"

	"github.com/kilnhq/kiln/machine/randomseed"
)

// useSeed gives the kernel the random seed that the node has kept on STATE, and
// saves a better one when the kernel's random numbers are good.
func (n *Node) useSeed() {
	if n.options.Disk == "" {
		return
	}
	credit, err := n.seed().Load()
	if err != nil {
		n.remark("random seed", "%v", err)
	}
	what := "not credited"
	if credit {
		what = "credited"
	}
	n.event("seed", randomseed.Name, what, nil)
	go n.saveSeed(true)
}

// saveSeed saves a seed for the next start.
func (n *Node) saveSeed(wait bool) {
	if n.options.Disk == "" {
		return
	}
	if err := n.seed().Save(wait); err != nil {
		n.remark("random seed", "%v", err)
	}
}

func (n *Node) seed() randomseed.Store {
	return randomseed.Store{Dir: n.options.StateDir, Machine: machineIdentity(), Kernel: randomseed.Device{}}
}

// machineIdentity is what tells this machine from the copy of its disk in another:
// the UUID that its firmware or hypervisor gives it; nil if there is none.
func machineIdentity() []byte {
	uuid, err := os.ReadFile("/sys/class/dmi/id/product_uuid")
	if err != nil || strings.Trim(string(uuid), "0-\n") == "" || strings.Trim(strings.ToLower(string(uuid)), "f-\n") == "" {
		return nil
	}
	return uuid
}
