package platform

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/kilnhq/kiln/machine/platform/ovf"
	"github.com/kilnhq/kiln/machine/platform/volume"
)

// azureFile is on the medium that Azure attaches while it provisions a machine.
const azureFile = "ovf-env.xml"

// wireServer is where the fabric of Azure talks to its machines.
const (
	wireServer  = "http://168.63.129.16"
	wireVersion = "2015-04-05"
)

// azureService is the Instance Metadata Service.
func azureService() service {
	return service{
		name: "azure", bases: []string{linkLocal},
		header:   [][2]string{{"Metadata", "true"}},
		userData: "/metadata/instance/compute/userData?api-version=2021-01-01&format=text", encoded: true,
		document: "/metadata/instance?api-version=2021-02-01&format=json", decode: azureInstance,
	}
}

// azure adds the custom data of the provisioning medium, the user data of the
// metadata service, and the report that the machine is ready.
func azure(p *Platform, env *Environment) {
	p.Sources = append(p.Sources, Source{Name: "azure provisioning medium", Patience: patienceVolume, Configuration: func(context.Context) ([]byte, error) {
		e, err := env.azureMedium()
		if err != nil {
			return nil, err
		}
		if e.CustomData == "" {
			return nil, fmt.Errorf("%w: %s has no CustomData", ErrNone, azureFile)
		}
		data, err := decodeBase64([]byte(e.CustomData))
		if err != nil {
			return nil, fmt.Errorf("%s: CustomData: %w", azureFile, err)
		}
		return data, nil
	}})
	p.ask(env.service(azureService()))
	p.Ready = env.azureReady
}

// azureMedium reads the OVF environment of the provisioning medium, which is told
// by its file: its label changes.
func (e *Environment) azureMedium() (*ovf.Environment, error) {
	devices, err := e.Devices()
	if err != nil {
		return nil, err
	}
	v, err := volume.FindFile(devices, azureFile)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, temporary("%w: %w", ErrNone, err)
	}
	if err != nil {
		return nil, err
	}
	defer v.Close()
	data, err := v.ReadFile(azureFile, 2*MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, temporary("%w: %w", ErrNone, err)
	}
	if err != nil {
		return nil, err
	}
	env, err := ovf.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%s: %w", v.Device, azureFile, err)
	}
	return env, nil
}

// azureInstance reads /metadata/instance.
func azureInstance(data []byte, m *Metadata) error {
	type family struct {
		Addresses []struct {
			Private string `json:"privateIpAddress"`
			Public  string `json:"publicIpAddress"`
		} `json:"ipAddress"`
	}
	var d struct {
		Compute struct {
			Name     string `json:"name"`
			Location string `json:"location"`
			Zone     string `json:"zone"`
			ID       string `json:"vmId"`
			Profile  struct {
				ComputerName string `json:"computerName"`
			} `json:"osProfile"`
		} `json:"compute"`
		Network struct {
			Interfaces []struct{ IPv4, IPv6 family } `json:"interface"`
		} `json:"network"`
	}
	err := decodeJSON(data, &d)
	c := d.Compute
	m.Hostname, m.InstanceID, m.Region, m.Zone = c.Profile.ComputerName, c.ID, c.Location, c.Zone
	if m.Hostname == "" {
		m.Hostname = c.Name
	}
	for _, i := range d.Network.Interfaces {
		for _, f := range []family{i.IPv4, i.IPv6} {
			for _, a := range f.Addresses {
				m.Private = append(m.Private, addresses(a.Private)...)
				m.Public = append(m.Public, addresses(a.Public)...)
			}
		}
	}
	return err
}

// goalState is what of the wire server's goal state goes into the report.
type goalState struct {
	XMLName     xml.Name `xml:"GoalState"`
	Incarnation string   `xml:"Incarnation"`
	Container   string   `xml:"Container>ContainerId"`
	Instance    string   `xml:"Container>RoleInstanceList>RoleInstance>InstanceId"`
}

// health is the report.
type health struct {
	XMLName     xml.Name `xml:"Health"`
	Incarnation string   `xml:"GoalStateIncarnation"`
	Container   string   `xml:"Container>ContainerId"`
	Instance    string   `xml:"Container>RoleInstanceList>Role>InstanceId"`
	State       string   `xml:"Container>RoleInstanceList>Role>Health>State"`
}

// azureReady reports that the machine is ready, without which Azure takes its
// provisioning for failed.
func (e *Environment) azureReady(ctx context.Context) error {
	header := [][2]string{{"X-Ms-Agent-Name", "kiln"}, {"X-Ms-Version", wireVersion}}
	a, err := do(ctx, e.Client, request{url: wireServer + "/machine/?comp=goalstate", header: header, strict: true})
	if err != nil {
		return err
	}
	var g goalState
	if err := xml.Unmarshal(a.body, &g); err != nil || g.Incarnation == "" || g.Container == "" || g.Instance == "" {
		return temporary("GET %s/machine/: want a GoalState with Incarnation, ContainerId and InstanceId", wireServer)
	}
	var b bytes.Buffer
	b.WriteString(xml.Header)
	if err := xml.NewEncoder(&b).Encode(health{Incarnation: g.Incarnation, Container: g.Container, Instance: g.Instance, State: "Ready"}); err != nil {
		return err
	}
	_, err = do(ctx, e.Client, request{
		method: http.MethodPost, url: wireServer + "/machine/?comp=health", strict: true, body: b.Bytes(),
		header: append(header, [2]string{"Content-Type", "text/xml;charset=utf-8"}),
	})
	return err
}
