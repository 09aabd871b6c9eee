package config

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

// roundTrip checks that what is encoded is what is parsed.
func roundTrip(t *testing.T, c *Config) {
	t.Helper()
	data, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("encoded", data)
	if err != nil {
		t.Fatalf("%s\n%v", data, err)
	}
	if !reflect.DeepEqual(again, c) {
		t.Fatalf("%s\n got %+v\nwant %+v", data, again, c)
	}
	twice, err := Encode(again)
	if err != nil || !bytes.Equal(twice, data) {
		t.Fatalf("encoded twice: %v\n%s\n%s", err, data, twice)
	}
	if d := Diff(c, again); len(d) > 0 {
		t.Fatalf("differences: %v", d)
	}
	if _, err := Redacted(c); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range examples(f) {
		f.Add([]byte(s))
	}
	faults(func(in, _ string) { f.Add([]byte(in)) })
	f.Add([]byte(doc("Kubelet", "config: {a: [1.0, 1e30, 0x1f, ~, 'a\n\n b', 2020-01-01, {}], 18446744073709551615: x}\n")))
	f.Add([]byte(doc("File", "path: /var/a\ncontent: |2-\n   a\n\n  b\n")))
	f.Add([]byte(doc("File", "path: /var/a\ncontent: \"a\\r\\n\\tb\\x00\\u2028 \\n\"\n")))
	schema := validator(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			var invalid *strictyaml.Error
			if !errors.As(err, &invalid) || len(invalid.Problems) == 0 {
				t.Fatalf("the error is %#v", err)
			}
			return
		}
		roundTrip(t, c)
		if err := refused(t, schema, string(data)); err != nil {
			t.Fatalf("the schema refuses what Parse takes: %v", err)
		}
	})
}

func FuzzParseContexts(f *testing.F) {
	f.Add([]byte("apiVersion: v1alpha1\nkind: Contexts\ncurrent: a\ncontexts: {a: {ca: x, identity: {certificate: x, key: y}}}\n"))
	for _, s := range examples(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseContexts("f", data)
		if err != nil {
			return
		}
		out, err := EncodeContexts(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseContexts("encoded", out); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%s\n%v", out, err)
		}
	})
}

// Any text survives.
func FuzzEncode(f *testing.F) {
	for _, s := range []string{"a\nb\n", "a\n\n", "\na", " a\nb", "a \nb", "a\n b", "\ta\n", "a\r\nb", "#a\nb", "- a\n", "---\na\n", "...\n", "\u2028\n", "\ufeffa\n", "5", "~", "!x", "*x", "a: b", "yes", "0x1", "\x00", "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || s == "" || s == Placeholder {
			return
		}
		c := &Config{
			Files:   []File{{Path: "/var/a", Mode: 0o644, Encoding: EncodingText, Content: NewSecret(s)}},
			Kubelet: &Kubelet{ClusterDomain: "a", Config: Object{"featureGates": map[string]any{"a": s, "b": map[string]any{s: []any{s, nil, 1.5, 7, true}}}}},
		}
		roundTrip(t, c)
	})
}
