package config

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

const plasma = "plasma-4711"

// secrets is a configuration in which every secret is plasma.
func secrets(t *testing.T) *Config {
	return parse(t, stream(
		doc("File", "path: /var/a\ncontent: "+plasma+"\n"),
		doc("Registry", "name: a.example\nauth: {username: u, password: "+plasma+"}\n"),
		doc("Registry", "name: b.example\nauth: {identityToken: "+plasma+"}\n"),
		doc("Service", "name: a\nimage: a\nenvironment: {A: "+plasma+"}\n"),
		doc("Kubelet", "bootstrapKubeconfig: "+plasma+"\n"),
	))
}

func TestSecretNeverShown(t *testing.T) {
	c := secrets(t)
	type inside struct { // fmt calls no methods of unexported fields
		secret Secret
		list   []Secret
		config *Config
	}
	s := c.Files[0].Content
	hidden := inside{s, []Secret{s}, c}
	var log bytes.Buffer
	for _, l := range []*slog.Logger{slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))} {
		l.Info("x", "secret", s, "pointer", &s, "file", c.Files[0], "config", c, "services", c.Services, "inside", fmt.Sprintf("%+v", hidden))
	}
	shown := []string{log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10.3s", "%T", "%p"} {
		for _, v := range []any{s, &s, *c, c, c.Files, &c.Files[0], c.Services[0].Environment, c.Registries[0].Auth, hidden, &hidden, fmt.Errorf("x %v", s)} {
			shown = append(shown, fmt.Sprintf(verb, v))
		}
	}
	for _, marshal := range []func(any) ([]byte, error){json.Marshal, func(v any) ([]byte, error) { return yaml.Marshal(v) },
		func(any) ([]byte, error) { return xml.Marshal(s) }, func(any) ([]byte, error) { return Redacted(c) }} {
		data, err := marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, string(data))
	}
	for _, change := range Diff(&Config{}, c) {
		shown = append(shown, change.String())
	}
	for _, text := range shown {
		for _, form := range []string{plasma, fmt.Sprintf("%x", plasma), fmt.Sprintf("%X", plasma)} {
			if strings.Contains(text, form) {
				t.Errorf("a secret is in %q", text)
			}
		}
	}
	if !strings.Contains(log.String(), Placeholder) || fmt.Sprint(s) != Placeholder || fmt.Sprint(Secret{}) != "" {
		t.Errorf("no placeholder in %s", log.String())
	}
	if s.Reveal() != plasma {
		t.Error("the secret is lost")
	}
}

// What is wrong with a document must not repeat its secrets.
func TestSecretNotInErrors(t *testing.T) {
	for _, in := range []string{
		doc("File", "path: /var/a\ncontent: ["+plasma+"]\n"),
		doc("File", "path: /var/a\ncontent: *"+plasma+"\n"),
		doc("File", "path: /var/a\nencoding: base64\ncontent: "+plasma+"\n"),
		doc("File", "path: /var/a\ncontent: !!binary "+plasma+"\n"),
		doc("File", "path: /var/a\ncontent: %"+plasma+"\n"),
		doc("File", "path: /var/a\ncontent: \""+plasma+"\n"),
		doc("File", "path: /var/a\ncontent: '"+plasma+"' x\n"),
		doc("Service", "name: a\nimage: a\nenvironment: {A: \""+plasma+"\\0\"}\n"),
		doc("Registry", "name: a.example\nauth: "+plasma+"\n"),
		doc("Registry", "name: a.example\nmirrors: [{url: 'https://u:"+plasma+"@x'}]\n"),
		doc("Registry", "name: a.example\nmirrors: [{url: 'https://u:"+plasma+"@x:y:z'}]\n"),
		doc("API", "clientCAs: x\nissuer: {certificate: x, key: "+plasma+"}\n"),
		doc("API", "clientCAs: x\nissuer: {key: x, certificate: |\n  -----BEGIN PRIVATE KEY-----\n  "+plasma+"\n  -----END PRIVATE KEY-----\n  }\n"),
	} {
		_, err := Parse("m.yaml", []byte(in))
		if err == nil || strings.Contains(err.Error(), plasma) {
			t.Errorf("%s\n%v", in, err)
		}
	}
	for _, number := range []string{"4711", "47.11", "true", "2024-02-31"} {
		_, err := Parse("m.yaml", []byte(doc("Kubelet", "bootstrapKubeconfig: "+number+"\n")))
		if err != nil && strings.Contains(err.Error(), number) {
			t.Errorf("%v", err)
		}
	}
}

// What was shown cannot be applied.
func TestRedacted(t *testing.T) {
	data, err := Redacted(secrets(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Parse("m.yaml", data)
	if err == nil || strings.Count(err.Error(), "the placeholder of a secret, want the secret itself") != 5 {
		t.Errorf("%s\n%v", data, err)
	}
}
