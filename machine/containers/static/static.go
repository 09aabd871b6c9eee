// Package static describes the containers that a node itself runs: what PID 1
// wants, as it tells it to the program that asks containerd for it. The form is
// JSON, in a file for each container, which may hold secrets.
package static

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Dir is where the files are, and what belongs to a container while it runs.
const Dir = "/run/kiln/containers"

// When to ask a registry for an image.
const (
	PullMissing = "missing" // also if it is empty
	PullAlways  = "always"
	PullNever   = "never"
)

// Networks.
const (
	NetworkHost   = "host" // also if it is empty
	NetworkBridge = "bridge"
	NetworkNone   = "none"
)

// A Container is what the node is to run.
type Container struct {
	Name string `json:"name"`

	// Of an image, or of a directory of the node.
	Image  string `json:"image,omitempty"`
	Pull   string `json:"pull,omitempty"`
	RootFS string `json:"rootfs,omitempty"`

	Command    []string `json:"command,omitempty"` // instead of the image's entry point
	Args       []string `json:"args,omitempty"`    // instead of the image's
	WorkingDir string   `json:"workingDir,omitempty"`
	User       *uint32  `json:"user,omitempty"`
	Group      *uint32  `json:"group,omitempty"`
	Env        []string `json:"env,omitempty"`     // KEY=VALUE, besides the image's
	EnvFile    string   `json:"envFile,omitempty"` // with lines KEY=VALUE, which Env precedes

	Mounts       []Mount `json:"mounts,omitempty"`
	Network      string  `json:"network,omitempty"`
	Ports        []Port  `json:"ports,omitempty"`
	WritableRoot bool    `json:"writableRoot,omitempty"`

	// Privileged is all capabilities and devices, and nothing that restrains.
	Privileged   bool     `json:"privileged,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"` // besides the default ones; AllCapabilities
	AllDevices   bool     `json:"allDevices,omitempty"`   // those that it has nodes of may be used
	NoSeccomp    bool     `json:"noSeccomp,omitempty"`
	WritableSys  bool     `json:"writableSys,omitempty"`
	Propagation  string   `json:"propagation,omitempty"` // of mounts: private, slave or shared, with r for those below

	// Paths that cannot be read, or not be written; nil is the default ones.
	MaskedPaths   *[]string `json:"maskedPaths,omitempty"`
	ReadonlyPaths *[]string `json:"readonlyPaths,omitempty"`

	Memory int64   `json:"memory,omitempty"` // bytes
	CPUs   float64 `json:"cpus,omitempty"`
	PIDs   int64   `json:"pids,omitempty"`

	StopTimeout time.Duration `json:"stopTimeout,omitempty"` // from SIGTERM to SIGKILL
}

// AllCapabilities is a capability that stands for all.
const AllCapabilities = "ALL"

// A Mount is something of the node, or a file system, that the container sees.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source,omitempty"`
	Target  string   `json:"target"`
	Options []string `json:"options,omitempty"` // as mount(8) has them
}

// A Port of the node leads to one of the container's.
type Port struct {
	Host      int    `json:"host"`
	Container int    `json:"container"`
	Protocol  string `json:"protocol"` // tcp or udp
}

// File returns where the description of a container is.
func File(dir, name string) string { return filepath.Join(dir, name+".json") }

// Write writes the description of a container for those who may read everything.
func Write(dir string, c *Container) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := File(dir, c.Name)
	temporary := name + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, name)
}

// Read reads the description of a container.
func Read(dir, name string) (*Container, error) {
	data, err := os.ReadFile(File(dir, name))
	if err != nil {
		return nil, err
	}
	c := &Container{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("%s: %w", File(dir, name), err)
	}
	if c.Name != name {
		return nil, fmt.Errorf("%s: is of container %q, want %q", File(dir, name), c.Name, name)
	}
	return c, nil
}

// started is a file that is there while the container runs.
const started = "started"

// MarkStarted says that a container has been started. What belongs to it while it
// runs is in a directory of its name.
func MarkStarted(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, name, started), nil, 0o600)
}

// Started returns an error if the container has not been started.
func Started(dir, name string) error {
	if _, err := os.Stat(filepath.Join(dir, name, started)); err != nil {
		return errors.New("it has not been started yet")
	}
	return nil
}
