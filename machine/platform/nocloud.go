package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kilnhq/kiln/machine/platform/nocloud"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

const cidataLabel = "cidata"

// noCloud adds what cloud-init calls NoCloud.
func noCloud(p *Platform, env *Environment) {
	p.Sources = append(p.Sources,
		Source{Name: "nocloud", Patience: patienceNetwork, Configuration: func(ctx context.Context) ([]byte, error) {
			seed, err := env.seed()
			if err != nil {
				return nil, err
			}
			if seed.URL == nil {
				return nil, fmt.Errorf("%w: neither the kernel arguments nor the serial number of the machine name a seed", ErrNone)
			}
			a, err := do(ctx, env.Client, request{url: seed.File("user-data").String()})
			if err != nil {
				return nil, err
			}
			if len(bytes.TrimSpace(a.body)) == 0 {
				return nil, fmt.Errorf("%w: the user-data of the seed is empty", ErrNone)
			}
			return a.body, nil
		}},
		Source{Name: "nocloud volume", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
			return env.userData("user-data", cidataLabel)
		}})
	p.Metadata = env.noCloudMetadata
}

// seed returns what the kernel's arguments or the serial number say about a seed.
func (e *Environment) seed() (nocloud.Seed, error) {
	for _, word := range e.Args {
		if seed, ok, err := nocloud.ParseSeed(word); ok {
			return seed, err
		}
	}
	s, err := e.system()
	if err != nil {
		return nocloud.Seed{}, err
	}
	seed, _, err := nocloud.ParseSeed(s.Serial)
	return seed, err
}

func (e *Environment) noCloudMetadata(ctx context.Context) (*Metadata, error) {
	seed, err := e.seed()
	if err != nil {
		return nil, err
	}
	var data, network []byte
	if seed.URL != nil {
		data, network, err = e.remoteSeed(ctx, seed)
	} else {
		err = e.fromVolume(func(v *volume.Volume) (err error) {
			if data, err = optional(v, "meta-data"); err != nil {
				return err
			}
			network, err = optional(v, "network-config")
			return err
		}, cidataLabel)
		if errors.Is(err, ErrNone) && seed != (nocloud.Seed{}) {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	m, err := nocloud.ParseMetaData(data)
	if err != nil {
		return nil, err
	}
	if seed.Hostname != "" {
		m.Hostname = seed.Hostname
	}
	if seed.InstanceID != "" {
		m.InstanceID = seed.InstanceID
	}
	return &Metadata{Hostname: m.Hostname, InstanceID: m.InstanceID, Network: network}, nil
}

// remoteSeed fetches the meta-data and the network-config of a seed; either may be
// missing.
func (e *Environment) remoteSeed(ctx context.Context, seed nocloud.Seed) (data, network []byte, err error) {
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"meta-data", &data}, {"network-config", &network}} {
		a, err := do(ctx, e.Client, request{url: seed.File(f.name).String()})
		if errors.Is(err, ErrNone) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		*f.to = a.body
	}
	return data, network, nil
}
