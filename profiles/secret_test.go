package profiles_test

import (
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/profiles"
)

// JSON, which goes beside images, has no secrets; YAML is the profile itself.
func TestMachineConfig(t *testing.T) {
	p, err := profiles.Parse("p.yaml", []byte("version: v1alpha1\nextends: metal\nname: p\nmachineConfig: |\n  token: plasma\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.MachineConfig != "token: plasma\n" {
		t.Errorf("machineConfig is %q", p.MachineConfig)
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(data); strings.Contains(s, "plasma") || !strings.Contains(s, `"machineConfig":"sha256:`) {
		t.Errorf("JSON is %s", s)
	}
	data, err = yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := profiles.Parse("p.yaml", data)
	if err != nil || again.MachineConfig != p.MachineConfig {
		t.Errorf("from YAML: %v, %+v", err, again)
	}
	p.MachineConfig = profiles.Secret(strings.Repeat("x", 1<<20+1))
	if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "machineConfig: 1048577 bytes, want at most 1048576") {
		t.Errorf("too long: %v", err)
	}
}
