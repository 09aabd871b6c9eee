//go:build linux

package control

import (
	"time"

	"github.com/kilnhq/kiln/machine/meta"
)

type ConfigRequest struct {
	Secrets bool `json:"secrets"` // with them
}

type Config struct {
	Config   []byte `json:"config"` // YAML documents, at most MaxConfig
	Source   string `json:"source"`
	Redacted bool   `json:"redacted"`
}

type ConfigChange struct {
	Config []byte `json:"config"`
	DryRun bool   `json:"dry_run"`
}

type ConfigResult struct {
	Diff     string   `json:"diff"` // unified, without secrets; the Server cuts off what is too long
	Warnings []string `json:"warnings,omitempty"`
	Reboot   bool     `json:"reboot"` // it takes effect with the next start
	Applied  bool     `json:"applied"`
}

type MetaRequest struct {
	Secrets bool `json:"secrets"`
}

type MetaList struct {
	Values []MetaValue `json:"values"`
}

type MetaValue struct {
	Key      uint32 `json:"key"`
	Name     string `json:"name"`
	Value    []byte `json:"value,omitempty"`
	Redacted bool   `json:"redacted"`
}

// redact leaves out all values but those that never hold secrets.
func (l *MetaList) redact() {
	for i, v := range l.Values {
		switch meta.Key(v.Key) {
		case meta.Upgrade, meta.StagedUpgradeImage, meta.UUIDOverride, meta.DiskImageBootloader, meta.ResetRequest, meta.UpgradeRecord:
		default:
			l.Values[i].Value, l.Values[i].Redacted = nil, true
		}
	}
}

type MetaKeys struct {
	Keys []uint32 `json:"keys"`
}

type MetaDeleted struct {
	Deleted []uint32 `json:"deleted"`
}

type Kubeconfig struct {
	Kubeconfig []byte `json:"kubeconfig"`
}

// An UpgradeRequest says what is installed: the image that Reference names, or
// the bytes that follow.
type UpgradeRequest struct {
	Reference string `json:"reference"`
	Size      uint64 `json:"size"`   // bytes that follow
	SHA256    []byte `json:"sha256"` // of them
	Reboot    bool   `json:"reboot"` // when it is done
}

type UpgradeProgress struct {
	Step  string `json:"step"`
	Done  uint64 `json:"done"`  // bytes
	Total uint64 `json:"total"` // 0 if it is not known
	Slot  string `json:"slot"`  // in the last message
}

type RollbackRequest struct {
	Reboot bool `json:"reboot"`
}

type RollbackResult struct {
	Slot string `json:"slot"`
}

type ResetRequest struct {
	State     bool `json:"state"`
	Ephemeral bool `json:"ephemeral"`
	Shutdown  bool `json:"shutdown"`
}

type PowerRequest struct {
	Action string `json:"action"` // Reboot or PowerOff
}

type ReadRequest struct {
	Path   string `json:"path"` // absolute
	Offset uint64 `json:"offset"`
	Limit  uint64 `json:"limit"` // bytes; 0 is all
}

type FileChunk struct {
	Data []byte `json:"data"`
}

type ListRequest struct {
	Path      string `json:"path"` // absolute
	Recursive bool   `json:"recursive"`
}

type FileInfo struct {
	Path     string    `json:"path"`
	Mode     uint32    `json:"mode"` // st_mode of stat(2)
	Size     uint64    `json:"size"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Modified time.Time `json:"modified,omitzero"`
	Link     string    `json:"link"`
	Error    string    `json:"error"`
}

// IsDir reports whether it is a directory.
func (i FileInfo) IsDir() bool { return i.Mode&0o170000 == 0o040000 }
