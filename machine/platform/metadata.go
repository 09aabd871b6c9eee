package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strings"
)

// metadata asks for what the service says about the machine, once.
func (c *conversation) metadata(ctx context.Context) (*Metadata, error) {
	var m Metadata
	_, err := c.reach(ctx, func(base string) ([]byte, error) {
		m = Metadata{}
		header, err := c.authorize(ctx, base)
		if err != nil {
			return nil, err
		}
		if c.document != "" {
			if err := c.readDocument(ctx, base, header, &m); err != nil {
				return nil, err
			}
		}
		return nil, c.readTexts(ctx, base, header, &m)
	})
	if err != nil {
		return nil, err
	}
	return &m, nil
}

func (c *conversation) readDocument(ctx context.Context, base string, header [][2]string, m *Metadata) error {
	if c.accept != "" {
		header = append(header[:len(header):len(header)], [2]string{"Accept", c.accept})
	}
	data, err := c.get(ctx, base+c.document, header, maxDocument)
	if err != nil {
		return err
	}
	if err := c.decode(data, m); err != nil {
		document, _, _ := strings.Cut(c.document, "?")
		return fmt.Errorf("GET %s%s: %w", base, document, err)
	}
	return nil
}

// readTexts reads the texts; one that is not there is empty.
func (c *conversation) readTexts(ctx context.Context, base string, header [][2]string, m *Metadata) error {
	text := func(path string) (string, error) {
		if path == "" {
			return "", nil
		}
		data, err := c.get(ctx, base+path, header, 4<<10)
		if err != nil && !errors.Is(err, ErrNone) {
			return "", err
		}
		return strings.TrimSpace(string(data)), nil
	}
	for _, f := range []struct {
		path string
		to   *string
	}{
		{c.texts.hostname, &m.Hostname}, {c.texts.instanceID, &m.InstanceID},
		{c.texts.region, &m.Region}, {c.texts.zone, &m.Zone},
	} {
		v, err := text(f.path)
		if err != nil {
			return err
		}
		if v != "" {
			*f.to = v
		}
	}
	for _, f := range []struct {
		path string
		to   *[]netip.Addr
	}{{c.texts.private, &m.Private}, {c.texts.public, &m.Public}} {
		v, err := text(f.path)
		if err != nil {
			return err
		}
		*f.to = append(*f.to, addresses(v)...)
	}
	return nil
}

// addresses returns the addresses among texts; what is none is left out, as
// services write "" or a network in their place.
func addresses(list ...string) []netip.Addr {
	var found []netip.Addr
	for _, s := range list {
		s, _, _ = strings.Cut(strings.TrimSpace(s), "/")
		if a, err := netip.ParseAddr(s); err == nil {
			found = append(found, a)
		}
	}
	return found
}

func decodeJSON(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("want JSON: %w", err)
	}
	return nil
}

// akamaiInstance reads /v1/instance.
func akamaiInstance(data []byte, m *Metadata) error {
	var d struct {
		ID     json.Number `json:"id"`
		Label  string      `json:"label"`
		Region string      `json:"region"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Region = d.Label, d.ID.String(), d.Region
	return err
}

// digitalOcean reads /metadata/v1.json.
func digitalOcean(data []byte, m *Metadata) error {
	type card struct {
		IPv4, IPv6 struct {
			Address string `json:"ip_address"`
		}
	}
	var d struct {
		DropletID  json.Number `json:"droplet_id"`
		Hostname   string      `json:"hostname"`
		Region     string      `json:"region"`
		Interfaces struct {
			Public, Private []card
		} `json:"interfaces"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Region = d.Hostname, d.DropletID.String(), d.Region
	for _, c := range d.Interfaces.Public {
		m.Public = append(m.Public, addresses(c.IPv4.Address, c.IPv6.Address)...)
	}
	for _, c := range d.Interfaces.Private {
		m.Private = append(m.Private, addresses(c.IPv4.Address, c.IPv6.Address)...)
	}
	return err
}

// googleInstance reads /computeMetadata/v1/instance/. A zone is the last part of a
// path, and a region a zone without its last letter.
func googleInstance(data []byte, m *Metadata) error {
	var d struct {
		ID       json.Number `json:"id"`
		Hostname string      `json:"hostname"`
		Zone     string      `json:"zone"`
		Cards    []struct {
			IP     string   `json:"ip"`
			IPv6   []string `json:"ipv6s"`
			Access []struct {
				ExternalIP string `json:"externalIp"`
			} `json:"accessConfigs"`
		} `json:"networkInterfaces"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID = d.Hostname, d.ID.String()
	if d.Zone != "" {
		m.Zone = path.Base(d.Zone)
		if i := strings.LastIndexByte(m.Zone, '-'); i > 0 {
			m.Region = m.Zone[:i]
		}
	}
	for _, c := range d.Cards {
		m.Private = append(m.Private, addresses(append([]string{c.IP}, c.IPv6...)...)...)
		for _, a := range c.Access {
			m.Public = append(m.Public, addresses(a.ExternalIP)...)
		}
	}
	return err
}

// oracleInstance reads /opc/v2/instance/.
func oracleInstance(data []byte, m *Metadata) error {
	var d struct {
		ID       string `json:"id"`
		Hostname string `json:"hostname"`
		Name     string `json:"displayName"`
		Region   string `json:"canonicalRegionName"`
		Zone     string `json:"availabilityDomain"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Region, m.Zone = d.Hostname, d.ID, d.Region, d.Zone
	if m.Hostname == "" {
		m.Hostname = d.Name
	}
	return err
}

// scalewayConf reads /conf?format=json.
func scalewayConf(data []byte, m *Metadata) error {
	type ip struct {
		Address string `json:"address"`
	}
	var d struct {
		ID        string `json:"id"`
		Hostname  string `json:"hostname"`
		PrivateIP string `json:"private_ip"`
		PublicIP  ip     `json:"public_ip"`
		PublicIPs []ip   `json:"public_ips"`
		Location  struct {
			Zone string `json:"zone_id"`
		} `json:"location"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Zone = d.Hostname, d.ID, d.Location.Zone
	m.Private = addresses(d.PrivateIP)
	if len(d.PublicIPs) == 0 {
		d.PublicIPs = []ip{d.PublicIP}
	}
	for _, p := range d.PublicIPs {
		m.Public = append(m.Public, addresses(p.Address)...)
	}
	return err
}

// upCloud reads /metadata/v1.json.
func upCloud(data []byte, m *Metadata) error {
	var d struct {
		InstanceID string `json:"instance_id"`
		Hostname   string `json:"hostname"`
		Region     string `json:"region"`
		Network    struct {
			Interfaces []struct {
				Type string `json:"type"`
				IPs  []struct {
					Address string `json:"address"`
				} `json:"ip_addresses"`
			} `json:"interfaces"`
		} `json:"network"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Zone = d.Hostname, d.InstanceID, d.Region
	for _, c := range d.Network.Interfaces {
		for _, ip := range c.IPs {
			if c.Type == "public" {
				m.Public = append(m.Public, addresses(ip.Address)...)
			} else {
				m.Private = append(m.Private, addresses(ip.Address)...)
			}
		}
	}
	return err
}

// vultr reads /v1.json.
func vultr(data []byte, m *Metadata) error {
	var d struct {
		InstanceID string `json:"instance-v2-id"`
		OldID      string `json:"instanceid"`
		Hostname   string `json:"hostname"`
		Region     struct {
			Code string `json:"regioncode"`
		} `json:"region"`
		Interfaces []struct {
			Type       string `json:"network-type"`
			IPv4, IPv6 struct {
				Address string `json:"address"`
			}
		} `json:"interfaces"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Region = d.Hostname, d.InstanceID, d.Region.Code
	if m.InstanceID == "" {
		m.InstanceID = d.OldID
	}
	for _, c := range d.Interfaces {
		if c.Type == "private" {
			m.Private = append(m.Private, addresses(c.IPv4.Address, c.IPv6.Address)...)
		} else {
			m.Public = append(m.Public, addresses(c.IPv4.Address, c.IPv6.Address)...)
		}
	}
	return err
}

// openStackMetaData reads meta_data.json.
func openStackMetaData(data []byte, m *Metadata) error {
	var d struct {
		UUID     string `json:"uuid"`
		Hostname string `json:"hostname"`
		Name     string `json:"name"`
		Zone     string `json:"availability_zone"`
	}
	err := decodeJSON(data, &d)
	m.Hostname, m.InstanceID, m.Zone = d.Hostname, d.UUID, d.Zone
	if m.Hostname == "" {
		m.Hostname = d.Name
	}
	return err
}
