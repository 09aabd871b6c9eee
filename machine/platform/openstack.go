package platform

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnhq/kiln/machine/platform/opennebula"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

const configDriveLabel = "config-2"

// openStack adds the config drive of Nova, and its metadata service.
func openStack(p *Platform, env *Environment) {
	p.Sources = append(p.Sources, Source{Name: "openstack config drive", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
		return env.userData("openstack/latest/user_data", configDriveLabel)
	}})
	c := env.service(openStackService())
	p.ask(c)
	p.Metadata = func(ctx context.Context) (*Metadata, error) {
		m, err := env.openStackDrive()
		if !errors.Is(err, ErrNone) {
			return m, err
		}
		if m, err = c.metadata(ctx); err != nil {
			return nil, err
		}
		data, err := c.get(ctx, c.bases[0]+"/openstack/latest/network_data.json", nil, maxDocument)
		if err != nil && !errors.Is(err, ErrNone) {
			return nil, err
		}
		m.Network = data
		return m, nil
	}
}

// openStackDrive reads the metadata from a config drive.
func (e *Environment) openStackDrive() (*Metadata, error) {
	var m Metadata
	err := e.fromVolume(func(v *volume.Volume) error {
		const name = "openstack/latest/meta_data.json"
		data, err := v.ReadFile(name, maxDocument)
		if err != nil {
			return err
		}
		if err := openStackMetaData(data, &m); err != nil {
			return fmt.Errorf("%s:%s: %w", v.Device, name, err)
		}
		m.Network, err = optional(v, "openstack/latest/network_data.json")
		return err
	}, configDriveLabel)
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// cloudStack adds CloudStack's config drive, and its virtual router.
func cloudStack(p *Platform, env *Environment) {
	p.Sources = append(p.Sources, Source{Name: "cloudstack config drive", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
		return env.userData("cloudstack/userdata/user_data.txt", configDriveLabel)
	}})
	c := env.service(cloudStackService())
	p.ask(c)
	p.Metadata = func(ctx context.Context) (*Metadata, error) {
		m, err := env.cloudStackDrive()
		if !errors.Is(err, ErrNone) {
			return m, err
		}
		return c.metadata(ctx)
	}
}

// cloudStackDrive reads the metadata from a config drive: a file for every text.
func (e *Environment) cloudStackDrive() (*Metadata, error) {
	var m Metadata
	err := e.fromVolume(func(v *volume.Volume) error {
		// What is not empty on every machine says whether it is CloudStack's.
		id, err := v.ReadFile("cloudstack/metadata/instance-id.txt", maxDocument)
		if err != nil {
			return err
		}
		m.InstanceID = strings.TrimSpace(string(id))
		var private, public string
		for _, f := range []struct {
			name string
			to   *string
		}{
			{"local-hostname", &m.Hostname}, {"availability-zone", &m.Zone},
			{"local-ipv4", &private}, {"public-ipv4", &public},
		} {
			data, err := optional(v, "cloudstack/metadata/"+f.name+".txt")
			if err != nil {
				return err
			}
			*f.to = strings.TrimSpace(string(data))
		}
		m.Private, m.Public = addresses(private), addresses(public)
		return nil
	}, configDriveLabel)
	if err != nil {
		return nil, err
	}
	return &m, nil
}

const contextLabel = "context"

// openNebula adds the context CD.
func openNebula(p *Platform, env *Environment) {
	p.Sources = append(p.Sources, Source{Name: "opennebula context", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
		vars, err := env.context()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{"USER_DATA", "USERDATA"} {
			text := vars[name]
			if text == "" {
				continue
			}
			if e := vars[name+"_ENCODING"]; e != "base64" && vars["USERDATA_ENCODING"] != "base64" {
				return []byte(text), nil
			}
			data, err := decodeBase64([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("context.sh: %s: %w", name, err)
			}
			return data, nil
		}
		return nil, fmt.Errorf("%w: context.sh has no USER_DATA", ErrNone)
	}})
	p.Metadata = func(context.Context) (*Metadata, error) {
		vars, err := env.context()
		if err != nil {
			return nil, err
		}
		m := &Metadata{InstanceID: vars["VMID"]}
		for _, name := range []string{"SET_HOSTNAME", "HOSTNAME", "NAME"} {
			if m.Hostname == "" {
				m.Hostname = vars[name]
			}
		}
		for _, name := range []string{"ETH0_IP", "ETH0_IP6"} {
			m.Private = append(m.Private, addresses(vars[name])...)
		}
		return m, nil
	}
}

// context reads the variables of the context CD.
func (e *Environment) context() (map[string]string, error) {
	data, err := e.file("context.sh", 2*MaxSize, contextLabel)
	if err != nil {
		return nil, err
	}
	return opennebula.Parse(data)
}
