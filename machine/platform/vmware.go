package platform

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/machine/platform/nocloud"
	"github.com/kilnhq/kiln/machine/platform/ovf"
	"github.com/kilnhq/kiln/machine/platform/vmware"
)

// Variables of VMware. Those with an encoding have it in NAME.encoding.
const (
	guestConfig   = "guestinfo.kiln.config"
	guestUserData = "guestinfo.userdata" // as cloud-init has it
	guestMetaData = "guestinfo.metadata"
	guestOVF      = "guestinfo.ovfEnv"
	propertyName  = "kiln.config" // in the OVF environment
)

// vmWare adds the variables of a machine of VMware.
func vmWare(p *Platform, env *Environment) {
	p.Sources = append(p.Sources, Source{Name: "vmware", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
		port, err := env.port()
		if err != nil {
			return nil, err
		}
		for _, name := range []string{guestConfig, guestUserData} {
			if data, err := guestVariable(port, name); err != nil || len(data) > 0 {
				return data, err
			}
		}
		e, err := ovfEnvironment(port)
		if err != nil {
			return nil, err
		}
		if text := e.Properties[propertyName]; text != "" {
			data, err := decodeBase64([]byte(text))
			if err != nil {
				return nil, fmt.Errorf("property %s of the OVF environment: %w", propertyName, err)
			}
			return data, nil
		}
		return nil, fmt.Errorf("%w: neither %s, %s nor the property %s is set", ErrNone, guestConfig, guestUserData, propertyName)
	}})
	p.Metadata = func(context.Context) (*Metadata, error) {
		port, err := env.port()
		if err != nil {
			return nil, err
		}
		data, err := guestVariable(port, guestMetaData)
		if err != nil {
			return nil, err
		}
		if len(data) == 0 {
			return nil, fmt.Errorf("%w: %s is not set", ErrNone, guestMetaData)
		}
		m, err := nocloud.ParseMetaData(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", guestMetaData, err)
		}
		return &Metadata{Hostname: m.Hostname, InstanceID: m.InstanceID, Network: data}, nil
	}
}

func (e *Environment) port() (vmware.Port, error) {
	port, err := e.Hypervisor()
	if errors.Is(err, vmware.ErrOther) {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	return port, err
}

// guestVariable returns the value of a variable, decoded; nothing if it is not set.
func guestVariable(port vmware.Port, name string) ([]byte, error) {
	value, ok, err := vmware.Get(port, name)
	if err != nil || !ok || value == "" {
		return nil, err
	}
	encoding, _, err := vmware.Get(port, name+".encoding")
	if err != nil {
		return nil, err
	}
	switch encoding {
	case "":
		return []byte(value), nil
	case "base64", "b64", "gzip+base64", "gz+b64": // gzip is seen by how it begins
		data, err := decodeBase64([]byte(value))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("%s.encoding: found %.40q, want base64 or gzip+base64", name, encoding)
}

func ovfEnvironment(port vmware.Port) (*ovf.Environment, error) {
	text, ok, err := vmware.Get(port, guestOVF)
	if err != nil {
		return nil, err
	}
	if !ok || text == "" {
		return &ovf.Environment{}, nil
	}
	e, err := ovf.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", guestOVF, err)
	}
	return e, nil
}
