// Package nocloud reads what describes a NoCloud seed: the words in a serial
// number or on a kernel command line that say where it is, and its meta-data.
//
// The format is cloud-init's, which describes it under "Datasources: NoCloud". A
// seed is three files, user-data, meta-data and network-config, in the root of
// a volume labelled cidata or below a URL. The words are
//
//	ds=nocloud[;KEY=VALUE…]
//
// with the keys s or seedfrom (the URL), h or local-hostname, and i or
// instance-id; nocloud-net is an older spelling of nocloud. The meta-data is
// YAML, or JSON.
package nocloud

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxMetaData bounds the meta-data, in bytes.
const maxMetaData = 64 << 10

// A Seed is what the words say.
type Seed struct {
	URL        *url.URL // ends in a slash, or has a query; nil if it is on a volume
	Hostname   string
	InstanceID string
}

// ParseSeed reads the words from a serial number, or from an argument of the
// kernel. ok is false for text that is about something else.
func ParseSeed(text string) (seed Seed, ok bool, err error) {
	source, found := strings.CutPrefix(strings.TrimSpace(text), "ds=")
	name, list, _ := strings.Cut(source, ";")
	if !found || name != "nocloud" && name != "nocloud-net" {
		return Seed{}, false, nil
	}
	for word := range strings.SplitSeq(list, ";") {
		if word == "" {
			continue
		}
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "s", "seedfrom":
			if seed.URL, err = parseURL(value); err != nil {
				return Seed{}, true, err
			}
		case "h", "local-hostname":
			seed.Hostname = value
		case "i", "instance-id":
			seed.InstanceID = value
		default:
			return Seed{}, true, fmt.Errorf("NoCloud: found %q in ds=%s; want s=URL, h=HOSTNAME or i=INSTANCE-ID", word, name)
		}
	}
	return seed, true, nil
}

func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("NoCloud: found the seed's address %q; want an http or https URL", text)
	}
	if u.RawQuery == "" && !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	return u, nil
}

// File returns the URL of a file of the seed, whose name is put behind the URL
// as it is: a URL may end in "?file=" as well as in a slash.
func (s Seed) File(name string) *url.URL {
	u := *s.URL
	if u.RawQuery != "" {
		u.RawQuery += url.QueryEscape(name)
		return &u
	}
	return u.JoinPath(name)
}

// MetaData is what kiln takes from a seed's meta-data.
type MetaData struct {
	InstanceID string
	Hostname   string
}

// ParseMetaData reads meta-data. What else it has does not matter; none at all
// is an empty MetaData.
func ParseMetaData(data []byte) (*MetaData, error) {
	if len(data) > maxMetaData {
		return nil, fmt.Errorf("NoCloud meta-data has %d bytes, want at most %d", len(data), maxMetaData)
	}
	var m struct {
		InstanceID    string `yaml:"instance-id"`
		LocalHostname string `yaml:"local-hostname"`
		Hostname      string `yaml:"hostname"`
	}
	err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&m)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("NoCloud meta-data: want YAML with instance-id and local-hostname: %w", err)
	}
	if m.LocalHostname == "" {
		m.LocalHostname = m.Hostname
	}
	return &MetaData{InstanceID: m.InstanceID, Hostname: m.LocalHostname}, nil
}
