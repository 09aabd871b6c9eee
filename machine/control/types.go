//go:build linux

package control

import (
	"log/slog"
	"time"
)

// A Secret is bytes that do not belong into logs or on consoles.
type Secret []byte

const secret = "(secret)"

func (Secret) String() string       { return secret }
func (Secret) GoString() string     { return secret }
func (Secret) LogValue() slog.Value { return slog.StringValue(secret) }

// Identity is what the API server identifies itself with, in PEM.
type Identity struct {
	Maintenance bool   `json:"maintenance"`  // there is no machine configuration: the certificate is of nobody, and CA empty
	CA          []byte `json:"ca,omitempty"` // that clients' certificates are of: one or, while it is replaced, several
	Certificate []byte `json:"certificate"`  // and those between it and the CA
	Key         Secret `json:"key"`
}

type Version struct {
	Version      string `json:"version"` // of kiln
	Kernel       string `json:"kernel"`
	Architecture string `json:"architecture"`
	Platform     string `json:"platform"`
	Hostname     string `json:"hostname"`
	MachineID    string `json:"machine_id"`
	Slot         string `json:"slot"` // A or B; empty if the node was not installed
	Maintenance  bool   `json:"maintenance"`
}

type Health struct {
	Ready  bool      `json:"ready"`
	Stage  string    `json:"stage"`
	Time   time.Time `json:"time,omitzero"`
	Uptime uint64    `json:"uptime"` // seconds
	Checks []Check   `json:"checks"`
}

type Check struct {
	Name    string `json:"name"`
	Passed  bool   `json:"passed"`
	Message string `json:"message"`
}

type ServiceList struct {
	Services []Service `json:"services"`
}

type Service struct {
	Name     string    `json:"name"`
	State    string    `json:"state"` // waiting, starting, running, stopping, stopped, failed
	Healthy  bool      `json:"healthy"`
	Message  string    `json:"message"`
	PID      int32     `json:"pid"`
	Restarts uint32    `json:"restarts"`
	Since    time.Time `json:"since,omitzero"`
}

// Actions of ServiceControl and PowerRequest.
const (
	Start    = "start"
	Stop     = "stop"
	Restart  = "restart"
	Reboot   = "reboot"
	PowerOff = "poweroff"
)

type ServiceControl struct {
	Name   string `json:"name"`
	Action string `json:"action"` // Start, Stop or Restart
}

type ServiceResult struct {
	Service Service `json:"service"`
}

// A TailRequest asks for the last Tail entries, all if that is negative, and, if
// Follow is set, for those that come.
type TailRequest struct {
	Tail   int  `json:"tail"`
	Follow bool `json:"follow"`
}

type LogsRequest struct {
	Service string `json:"service"`
	TailRequest
}

type LogLine struct {
	Time time.Time `json:"time,omitzero"`
	Text []byte    `json:"text"` // without the newline
	Lost uint64    `json:"lost"` // lines before this one that are gone
}

type DmesgLine struct {
	Sequence     uint64 `json:"sequence"`
	Microseconds uint64 `json:"microseconds"` // since the start
	Level        uint32 `json:"level"`        // 0 emergency to 7 debug
	Facility     uint32 `json:"facility"`     // 0 is the kernel
	Message      string `json:"message"`
	Lost         uint64 `json:"lost"`
}

type Event struct {
	Sequence uint64            `json:"sequence"`
	Time     time.Time         `json:"time,omitzero"`
	Kind     string            `json:"kind"`    // stage, service, module, config, …
	Subject  string            `json:"subject"` // what it is about
	Message  string            `json:"message"`
	Fields   map[string]string `json:"fields,omitempty"`
}

type NamespaceRequest struct {
	Namespace string `json:"namespace"` // of containerd
}

type ContainerList struct {
	Containers []Container `json:"containers"`
}

type Container struct {
	Namespace string    `json:"namespace"`
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Image     string    `json:"image"`
	Pod       string    `json:"pod"` // namespace/name
	Status    string    `json:"status"`
	PID       int32     `json:"pid"`
	Restarts  uint32    `json:"restarts"`
	Created   time.Time `json:"created,omitzero"`
	Memory    uint64    `json:"memory"` // bytes
	CPU       uint64    `json:"cpu"`    // milliseconds
}

type ImageList struct {
	Images []Image `json:"images"`
}

type Image struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	Size      uint64    `json:"size"` // bytes, compressed
	Created   time.Time `json:"created,omitzero"`
}

type ModuleList struct {
	Modules []Module `json:"modules"`
}

// A Module is one of an extension or of the configuration. The names are those of the file that PID 1
// keeps in /run/kiln/modules.json.
type Module struct {
	Name       string `json:"name"`
	Extension  string `json:"extension"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	Parameters string `json:"parameters"`
	File       string `json:"file"`
}

type ExtensionList struct {
	Extensions []Extension `json:"extensions"`
}

type Extension struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	Description string `json:"description"`
	Size        uint64 `json:"size"` // bytes
	SHA256      string `json:"sha256"`
}
