//go:build linux

package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kilnhq/kiln/machine/config"
)

// Mirrors come first, each with the credentials of its own host; credentials for a
// host go to no other.
func TestRegistriesOf(t *testing.T) {
	const head = "apiVersion: v1alpha1\nkind: Registry\n"
	for text, want := range map[string]string{
		"": "https://a.example/v2",
		"name: a.example\nauth: {username: u, password: p}\n":                                                                            "https://a.example/v2 u",
		"name: b.example\nauth: {username: u, password: p}\n":                                                                            "https://a.example/v2",
		"name: \"*\"\nmirrors: [{url: \"http://m.example:5000/x\"}]\n":                                                                   "http://m.example:5000/x/v2, https://a.example/v2",
		"name: a.example\nmirrors: [{url: \"https://m/p\", overridePath: true}]\nnoFallback: true\n":                                     "https://m/p",
		"name: a.example\nmirrors: [{url: \"https://m.example\"}]\n---\n" + head + "name: m.example\nauth: {username: v, password: p}\n": "https://m.example/v2 v, https://a.example/v2",
	} {
		c := &config.Config{}
		if text != "" {
			var err error
			if c, err = config.Parse("test", []byte(head+text)); err != nil {
				t.Fatal(err)
			}
		}
		list, err := registriesOf(c, "a.example")
		var got []string
		for _, r := range list {
			got = append(got, strings.TrimSpace(fmt.Sprint(r.Base, " ", r.User)))
		}
		if s := strings.Join(got, ", "); err != nil || s != want {
			t.Errorf("%q: %s, %v; want %s", text, s, err, want)
		}
	}
}
