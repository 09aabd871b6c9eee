// Package ovf reads OVF environments: the XML document in which a virtualization
// platform tells a machine how it was deployed.
//
// The document is that of DMTF DSP0243, Open Virtualization Format, chapter 9
// ("OVF environment"): properties with names and values. VMware hands it out as
// guestinfo.ovfEnv. On Azure it is the file ovf-env.xml of the provisioning
// medium, and has, instead of properties, a ProvisioningSection with Microsoft's
// LinuxProvisioningConfigurationSet.
package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxSize bounds a document, in bytes: 64 KiB of custom data, and room.
const maxSize = 2 << 20

// maxDepth bounds how deep elements are nested.
const maxDepth = 32

// Namespaces. The one of properties has had a version for each OVF's.
const (
	environmentSpace = "http://schemas.dmtf.org/ovf/environment/1"
	azureSpace       = "http://schemas.microsoft.com/windowsazure"
)

// An Environment is what a document says.
type Environment struct {
	Properties map[string]string
	// Hostname and CustomData are Azure's. CustomData is as in the document: base64.
	Hostname   string
	CustomData string
}

// Parse reads a document.
func Parse(data []byte) (*Environment, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("the OVF environment has %d bytes, want at most %d", len(data), maxSize)
	}
	p := parser{d: xml.NewDecoder(bytes.NewReader(data)), env: &Environment{Properties: map[string]string{}}}
	// What others declare an encoding other than UTF-8 for is read as it is:
	// the names and base64 that matter are ASCII.
	p.d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	if err := p.document(); err != nil {
		return nil, fmt.Errorf("OVF environment: %w", err)
	}
	return p.env, nil
}

type parser struct {
	d     *xml.Decoder
	env   *Environment
	path  []xml.Name
	text  strings.Builder
	found bool // the root element
}

func (p *parser) document() error {
	for {
		t, err := p.d.Token()
		if errors.Is(err, io.EOF) {
			if !p.found {
				return errors.New("the document has no element, want Environment")
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			if err := p.start(t); err != nil {
				return err
			}
		case xml.EndElement:
			p.end()
		case xml.CharData:
			p.text.Write(t)
		}
	}
}

func (p *parser) start(t xml.StartElement) error {
	if len(p.path) == 0 && t.Name.Local != "Environment" {
		return fmt.Errorf("found the element %.80q, want Environment", t.Name.Local)
	}
	p.found = true
	if len(p.path) == maxDepth {
		return fmt.Errorf("elements are nested more than %d deep", maxDepth)
	}
	p.path = append(p.path, t.Name)
	p.text.Reset()
	if t.Name.Local != "Property" || t.Name.Space != environmentSpace || !p.within("Environment", "PropertySection") {
		return nil
	}
	var key, value string
	for _, a := range t.Attr {
		switch {
		case a.Name.Space != environmentSpace:
		case a.Name.Local == "key":
			key = a.Value
		case a.Name.Local == "value":
			value = a.Value
		}
	}
	if _, ok := p.env.Properties[key]; !ok {
		p.env.Properties[key] = value
	}
	return nil
}

// end takes the text of Azure's elements.
func (p *parser) end() {
	name := p.path[len(p.path)-1]
	if name.Space == azureSpace && p.within("Environment", "ProvisioningSection", "LinuxProvisioningConfigurationSet") {
		switch name.Local {
		case "HostName":
			p.env.Hostname = strings.TrimSpace(p.text.String())
		case "CustomData":
			p.env.CustomData = strings.TrimSpace(p.text.String())
		}
	}
	p.path = p.path[:len(p.path)-1]
	p.text.Reset()
}

// within says whether the current element's parents have these names.
func (p *parser) within(names ...string) bool {
	if len(p.path) != len(names)+1 {
		return false
	}
	for i, n := range names {
		if p.path[i].Local != n {
			return false
		}
	}
	return true
}
