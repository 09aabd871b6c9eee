package ovf

import (
	"maps"
	"strings"
	"testing"
)

const azure = `<?xml version="1.0" encoding="utf-8"?>
<ns0:Environment xmlns:ns0="http://schemas.dmtf.org/ovf/environment/1" xmlns:ns1="http://schemas.microsoft.com/windowsazure">
  <ns1:ProvisioningSection>
    <ns1:Version>1.0</ns1:Version>
    <ns1:LinuxProvisioningConfigurationSet>
      <ns1:ConfigurationSetType>LinuxProvisioningConfiguration</ns1:ConfigurationSetType>
      <ns1:HostName>node-az</ns1:HostName>
      <ns1:SSH><ns1:PublicKeys><ns1:HostName>not this one</ns1:HostName></ns1:PublicKeys></ns1:SSH>
      <ns1:CustomData>
        dmVy
        c2lvbg==
      </ns1:CustomData>
    </ns1:LinuxProvisioningConfigurationSet>
  </ns1:ProvisioningSection>
  <ns1:PlatformSettingsSection><ns1:HostName>nor this</ns1:HostName></ns1:PlatformSettingsSection>
</ns0:Environment>`

const vmware = `<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"
  xmlns:ve="http://www.vmware.com/schema/ovfenv" oe:id="" ve:vCenterId="vm-12">
  <PlatformSection><Kind>VMware ESXi</Kind></PlatformSection>
  <PropertySection>
    <Property oe:key="kiln.config" oe:value="dmVyc2lvbg=="/>
    <Property oe:key="hostname" oe:value="n &amp; 1"/>
    <Property oe:key="hostname" oe:value="again"/>
  </PropertySection>
  <Entity oe:id="other"><PropertySection><Property oe:key="x" oe:value="of another machine"/></PropertySection></Entity>
</Environment>`

func TestParse(t *testing.T) {
	e, err := Parse([]byte(azure))
	if err != nil {
		t.Fatal(err)
	}
	if e.Hostname != "node-az" || strings.Join(strings.Fields(e.CustomData), "") != "dmVyc2lvbg==" || len(e.Properties) != 0 {
		t.Errorf("found %+v", e)
	}
	if e, err = Parse([]byte(vmware)); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"kiln.config": "dmVyc2lvbg==", "hostname": "n & 1"}; !maps.Equal(e.Properties, want) || e.CustomData != "" {
		t.Errorf("found %+v, want %v", e, want)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "OVF environment: the document has no element, want Environment"},
		{"text", "OVF environment: the document has no element, want Environment"},
		{"<Envelope/>", `OVF environment: found the element "Envelope", want Environment`},
		{"<Environment>", "OVF environment: XML syntax error on line 1: unexpected EOF"},
		{azure[:300], "OVF environment: XML syntax error on line 6: unexpected EOF"},
		{"<Environment>&bomb;</Environment>", "OVF environment: XML syntax error on line 1: invalid character entity &bomb;"},
		{"<Environment>" + strings.Repeat("<a>", 100), "OVF environment: elements are nested more than 32 deep"},
		{strings.Repeat(" ", maxSize+1), "the OVF environment has 2097153 bytes, want at most 2097152"},
	} {
		if _, err := Parse([]byte(c.text)); err == nil || err.Error() != c.want {
			t.Errorf("%.30q: %v, want %s", c.text, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(azure))
	f.Add([]byte(vmware))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := Parse(data); err == nil && e.Properties == nil {
			t.Error("no properties")
		}
	})
}
