//go:build linux

package nodeinfo

import (
	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/mount"
)

// A Mount is a mounted file system and its space.
type Mount struct {
	Source    string `json:"source"`
	Target    string `json:"target"`
	Type      string `json:"type"`
	Options   string `json:"options"`
	Size      uint64 `json:"size"` // bytes
	Used      uint64 `json:"used"`
	Available uint64 `json:"available"` // for others than root
	Files     uint64 `json:"files"`
	FilesUsed uint64 `json:"files_used"`
}

// Mounts returns what is mounted where this process is, in the order of mounting.
func (s System) Mounts() ([]Mount, error) {
	data, err := s.read("self/mountinfo")
	if err != nil {
		return nil, err
	}
	points, err := mount.ParseInfo(data)
	if err != nil {
		return nil, err
	}
	var list []Mount
	for _, p := range points {
		m := Mount{Source: p.Source, Target: p.Path, Type: p.Type, Options: p.Options}
		m.space()
		list = append(list, m)
	}
	return list, nil
}

// space asks for the space, but not over a network: nobody may answer there.
func (m *Mount) space() {
	switch m.Type {
	case "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse", "autofs":
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.Target, &st); err != nil || st.Blocks == 0 || st.Frsize <= 0 {
		return
	}
	unit := uint64(st.Frsize)
	m.Size, m.Available = st.Blocks*unit, st.Bavail*unit
	m.Used = (st.Blocks - min(st.Bfree, st.Blocks)) * unit
	m.Files, m.FilesUsed = st.Files, st.Files-min(st.Ffree, st.Files)
}
