//go:build linux

package cni

import (
	"strings"
	"testing"
)

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "unexpected end of JSON",
		`{"name":"n","plugins":[{}]}`: "want cniVersion, name and plugins",
		`{"cniVersion":"1.0.0","name":"n","plugins":[{}]}`:                   "plugins[0].type: <nil>, want the name of a program",
		`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../x"}]}`:      "plugins[0].type: ../x",
		`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":".."}]}`:        "plugins[0].type: ..",
		strings.Repeat(" ", maxList+1):                                       "want at most 1048576",
		`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"x"},{"a":1}]}`: "plugins[1].type",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %s", text, err, want)
		}
	}
	if _, err := Load(t.TempDir() + "/none"); err == nil {
		t.Error("a file that is not there is read")
	}
	n, err := Parse([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}`), "/none")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Add(t.Context(), Attachment{}); err == nil || err.Error() != "CNI plugin bridge is in none of /none" {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","capabilities":{"portMappings":true}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := Parse(data); err == nil && len(n.plugins) == 0 {
			t.Errorf("%+v", n)
		}
	})
}
