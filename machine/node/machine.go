//go:build linux

package node

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/machineid"
	"github.com/kilnhq/kiln/machine/network"
	"github.com/kilnhq/kiln/machine/platform/smbios"
)

// identifyMachine gives the node its identity: the one that is kept on STATE. A node
// that runs from memory has one for as long as it runs, but as a virtual machine its own.
func (n *Node) identifyMachine() {
	var given machineid.ID
	system, err := smbios.Read(os.DirFS("/sys/firmware"))
	if err == nil {
		given = machineid.FromFirmware(system)
	} else if !errors.Is(err, smbios.ErrNone) {
		n.remark("machine-id", "%v", err)
	}
	id, err := machineid.Keep(n.state.Dir, given, rand.Reader)
	if err != nil {
		n.remark("machine-id", "%v", err)
	}
	n.machineID, n.lasting = id, n.options.Disk != "" || id == given
	if err := bindMachineID(id); err != nil {
		n.remark("machine-id", "%v", err)
	}
	n.setHostname(id.Hostname())
}

// bindMachineID makes an identity appear in /etc, where nobody changes it.
func bindMachineID(id machineid.ID) error {
	if err := os.MkdirAll(etcDir, 0o755); err != nil {
		return err
	}
	from, to := filepath.Join(etcDir, machineid.Name), filepath.Join("/etc", machineid.Name)
	if err := os.WriteFile(from, id.File(), 0o444); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount", Path: to, Err: err}
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// named returns a state of the network in which the node has a name: what the
// configuration says, else the platform, else DHCP, else one of its identity.
func (n *Node) named(s network.Status) network.Status {
	if s.Hostname == "" {
		s.Hostname = n.machineID.Hostname()
	}
	return s
}

func (n *Node) setHostname(name string) {
	n.mu.Lock()
	same := n.hostname == name
	n.hostname = name
	n.mu.Unlock()
	if same {
		return
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		n.remark("hostname", "%s: %v", name, err)
	}
	if err := n.issue(); err != nil {
		n.remark("api", "%v", err)
	}
}
