// Package platform finds the machine configuration of a node: the YAML that says
// what the machine is to be. Where it is depends on what the machine runs on, its
// platform, which the kernel argument kiln.platform names.
//
// The sources are asked one after the other, until one has a configuration:
//
//	state     what the node saved on STATE; then what it had saved before that,
//	          if that cannot be used
//	argument  the kernel argument kiln.config
//	platform  a metadata service, a small volume, the hypervisor
//	meta      the value machine-config of META
//	image     the file that was built into the image
//
// A source answers in one of four ways. It has a configuration; or it has none
// (ErrNone), and the next is asked; or it cannot tell now (TemporaryError), and is
// asked again for some time; or what it has cannot be used, which is reported, and
// the next is asked. Policy.Acquire goes that way.
//
// # Clock
//
// The first configuration is fetched before the time is known: many machines begin
// in 1970, or whenever their battery died. HTTPS must work nevertheless, see
// NewClient.
//
// # Secrets
//
// A configuration holds private keys, and a URL may hold a password. Errors never
// have more of a URL than scheme, host and path, and nothing of a configuration.
package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/meta"
	"github.com/kilnhq/kiln/machine/platform/smbios"
	"github.com/kilnhq/kiln/machine/platform/store"
	"github.com/kilnhq/kiln/machine/platform/vmware"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// Kernel arguments.
const (
	ArgPlatform = "kiln.platform"
	ArgConfig   = "kiln.config"
)

// MaxSize bounds a machine configuration, in bytes, compressed and not.
const MaxSize = store.MaxSize

// ErrNone is returned, wrapped, by a source that has no configuration, and by
// Acquire if that is so of all of them.
var ErrNone = errors.New("no machine configuration")

// A TemporaryError may go away by itself.
type TemporaryError struct {
	Err   error
	After time.Duration // the source asked not to be asked again before; 0 if it did not
}

func (e *TemporaryError) Error() string { return e.Err.Error() }
func (e *TemporaryError) Unwrap() error { return e.Err }

func temporary(format string, args ...any) error {
	return &TemporaryError{Err: fmt.Errorf(format, args...)}
}

// A Source is a place where a machine configuration may be.
type Source struct {
	Name string
	// Configuration asks once. It returns the configuration as it is there, which
	// may be compressed.
	Configuration func(ctx context.Context) ([]byte, error)
	// Patience is how long to ask again after temporary errors.
	Patience time.Duration
}

// Metadata is what a platform says about a machine. What it does not say is empty.
type Metadata struct {
	Hostname   string
	InstanceID string
	Region     string
	Zone       string
	Private    []netip.Addr
	Public     []netip.Addr
	// Network describes the network for a machine without DHCP, as the platform
	// wrote it: cloud-init's network-config of NoCloud, network_data.json of
	// OpenStack.
	Network []byte
}

// An Environment is what the sources have of a machine.
type Environment struct {
	Args cmdline.Args
	// Client makes requests; NewClient returns one. LowPort is like it, with a
	// source port below 1024, by which Scaleway tells root from others.
	Client, LowPort *http.Client
	// Devices lists the block devices: volume.Devices of blockdev.Local().
	Devices func() ([]volume.Device, error)
	// Firmware is the directory /sys/firmware.
	Firmware fs.FS
	// Hypervisor is vmware.Local.
	Hypervisor func() (vmware.Port, error)
	// State is where STATE is mounted.
	State store.Store
	// Meta returns a value of META, and whether it is there. An error is that META
	// cannot be read.
	Meta func(meta.Key) (value string, ok bool, err error)
	// Image is the file that was built into the image.
	Image string
	// MAC and Hostname return the address of the first network card, and the name
	// that DHCP gave the machine; "" as long as it is not known.
	MAC, Hostname func() string
}

// system returns what the firmware says; nothing if it has no tables.
func (e *Environment) system() (*smbios.System, error) {
	s, err := smbios.Read(e.Firmware)
	if errors.Is(err, smbios.ErrNone) {
		return &smbios.System{}, nil
	}
	return s, err
}

// A Platform is what a machine runs on.
type Platform struct {
	Name string
	// Sources are in the order in which they are to be asked.
	Sources []Source
	// Metadata asks the platform about the machine, once. It is ErrNone if the
	// platform has nothing to say.
	Metadata func(ctx context.Context) (*Metadata, error)
	// Ready tells the platform, once, that the machine is up. It is nil where the
	// platform does not want to be told; Azure gives up machines that do not.
	Ready func(ctx context.Context) error
}

// How long sources are asked again. Services of a platform answer as soon as there
// is a network, which takes some time. A volume that is asked for by an argument may be
// on a slow CD or a USB stick; other volumes may or may not be there, and drivers have
// found them when the machine gets here, or soon afterwards.
const (
	patienceNetwork = 3 * time.Minute
	patienceAsked   = 30 * time.Second
	patienceVolume  = 3 * time.Second
)

// New returns the platform of that name, the value of kiln.platform. An unknown one
// has the sources that every platform has, and one that says that it is unknown.
func New(name string, env *Environment) *Platform {
	p := &Platform{Name: name, Metadata: func(context.Context) (*Metadata, error) {
		return nil, fmt.Errorf("%w: the platform %s has no metadata", ErrNone, name)
	}}
	p.Sources = Saved(env)
	text, given := env.Args.Get(ArgConfig)
	if given && text == "none" {
		return p
	}
	if given {
		p.Sources = append(p.Sources, argument(env, text))
	}
	if build, ok := platforms()[name]; ok {
		if build != nil {
			build(p, env)
		}
	} else {
		known := fmt.Errorf("kernel argument %s=%s: no such platform; want one of %s", ArgPlatform, name, strings.Join(Names(), ", "))
		p.Sources = append(p.Sources, Source{Name: ArgPlatform, Configuration: func(context.Context) ([]byte, error) {
			return nil, known
		}})
	}
	p.Sources = append(p.Sources,
		Source{Name: "META", Configuration: env.fromMeta},
		Source{Name: "image", Configuration: env.fromImage})
	return p
}

// Saved returns the sources that are asked first on every platform: what the node
// has kept on STATE. They answer at once.
func Saved(env *Environment) []Source {
	return []Source{
		{Name: "STATE", Configuration: saved(env.State.Load)},
		{Name: "STATE (previous)", Configuration: saved(env.State.Previous)},
	}
}

// Names returns the names of platforms, sorted.
func Names() []string {
	var names []string
	for name := range platforms() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// platforms returns what adds its own to a Platform, by name; nil adds nothing.
func platforms() map[string]func(*Platform, *Environment) {
	all := map[string]func(*Platform, *Environment){
		"metal":      nil,
		"azure":      azure,
		"cloudstack": cloudStack,
		"nocloud":    noCloud,
		"opennebula": openNebula,
		"openstack":  openStack,
		"vmware":     vmWare,
	}
	for _, s := range services() {
		all[s.name] = func(p *Platform, env *Environment) { p.ask(env.service(s)) }
	}
	return all
}
