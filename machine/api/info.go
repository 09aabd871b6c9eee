//go:build linux

package api

import (
	"context"
	"fmt"

	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/blockdev"
	"github.com/kilnhq/kiln/machine/nodeinfo"
)

func (v *verbs) Processes(_ context.Context, r *v1alpha1.ProcessesRequest) (*v1alpha1.ProcessesResponse, error) {
	list, err := v.system.Processes(r.GetKernel())
	return answer[v1alpha1.ProcessesResponse](struct {
		Processes []nodeinfo.Process `json:"processes"`
	}{list}, err)
}

func (v *verbs) Stats(context.Context, *v1alpha1.StatsRequest) (*v1alpha1.StatsResponse, error) {
	return answer[v1alpha1.StatsResponse](v.system.Stats())
}

func (v *verbs) Memory(context.Context, *v1alpha1.MemoryRequest) (*v1alpha1.MemoryResponse, error) {
	return answer[v1alpha1.MemoryResponse](v.system.Memory())
}

func (v *verbs) Mounts(context.Context, *v1alpha1.MountsRequest) (*v1alpha1.MountsResponse, error) {
	list, err := v.system.Mounts()
	return answer[v1alpha1.MountsResponse](struct {
		Mounts []nodeinfo.Mount `json:"mounts"`
	}{list}, err)
}

func (v *verbs) Disks(context.Context, *v1alpha1.DisksRequest) (*v1alpha1.DisksResponse, error) {
	devices, err := v.disks.List()
	if err != nil {
		return nil, failure(fmt.Errorf("block devices: %w", err))
	}
	r := &v1alpha1.DisksResponse{}
	for _, d := range devices {
		if d.Kind == blockdev.Loop && d.Size == 0 || d.Kind == blockdev.RAM {
			continue
		}
		x := &v1alpha1.Disk{
			Name: d.Name, Path: d.Path, Kind: string(d.Kind), Size: uint64(max(d.Size, 0)), Sector: uint32(d.Sector), Model: d.Model,
			Serial: d.Serial, Wwn: d.WWN, Transport: d.Transport, Rotational: d.Rotational, Removable: d.Removable,
			ReadOnly: d.ReadOnly, Parent: d.Parent, Links: d.Links,
		}
		for _, u := range d.Users {
			x.Users = append(x.Users, u.String())
		}
		r.Disks = append(r.Disks, x)
	}
	return r, nil
}
