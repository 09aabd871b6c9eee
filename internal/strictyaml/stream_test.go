package strictyaml

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

type level string

func (level) Values() []string { return []string{"low", "high"} }

type strictDocument struct {
	Name   string            `yaml:"name" check:"required"`
	Level  level             `yaml:"level" check:"default=low"`
	Count  int               `yaml:"count" check:"min=1,max=9"`
	On     bool              `yaml:"on" check:"default=true"`
	Hosts  []netip.Addr      `yaml:"hosts" check:"max=2"`
	Inner  inner             `yaml:"inner"`
	Maybe  *inner            `yaml:"maybe"`
	Labels map[string]string `yaml:"labels"`
	Any    map[string]any    `yaml:"any"`
}

type inner struct {
	Size int `yaml:"size" check:"default=5"`
}

// one returns the only document of a stream.
func one(t *testing.T, in string) *Document {
	t.Helper()
	docs, err := Split("s.yaml", []byte(in))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	return docs[0]
}

func TestDocument(t *testing.T) {
	doc := one(t, "---\n# comment\n---\nkind: x\nname: \"1\"\nhosts: [192.0.2.1]\nmaybe: {}\nany: {a: [1, ~, 2020-01-01]}\n---\n")
	if kind, ok := doc.Text("kind"); !ok || kind != "x" {
		t.Errorf("kind %q", kind)
	}
	var got strictDocument
	doc.Decode(&got)
	want := strictDocument{Name: "1", Level: "low", On: true, Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Inner: inner{5}, Maybe: &inner{5},
		Any: map[string]any{"a": []any{1, nil, "2020-01-01"}}}
	if !reflect.DeepEqual(got, want) || len(doc.Problems()) > 0 {
		t.Errorf("got %+v, %v\nwant %+v", got, doc.Problems(), want)
	}
	if line, column := doc.At("hosts[0]"); line != 6 || column != 9 {
		t.Errorf("hosts[0] is at %d:%d", line, column)
	}
	if line, column := doc.At("hosts[7].x"); line != 6 || column != 8 {
		t.Errorf("what is not there is at %d:%d", line, column)
	}
}

// What is right is decoded, whatever else is wrong.
func TestDocumentProblems(t *testing.T) {
	doc := one(t, "name: a\nname: b\nlevel: medium\ncount: 10\non: 1\nhosts: [x, 192.0.2.1, '']\nlabels: {a: 5, b: c}\nx: 1\n")
	var got strictDocument
	doc.Decode(&got)
	if got.Name != "a" || len(got.Hosts) != 0 || got.Labels["b"] != "c" || got.Count != 0 {
		t.Errorf("got %+v", got)
	}
	const want = `s.yaml:2:1: key "name" again; it is already on line 1
s.yaml:3:8: level: unknown value "medium"; known: high, low
s.yaml:4:8: count: 10, want 1 to 9
s.yaml:5:5: on: 1, want true or false
s.yaml:6:8: hosts: 3 items, want at most 2
s.yaml:6:9: hosts[0]: "x", want an address such as 192.0.2.1 or 2001:db8::1
s.yaml:6:23: hosts[2]: "", want an address such as 192.0.2.1 or 2001:db8::1
s.yaml:7:13: labels.a: 5, want a string, in quotes
s.yaml:8:1: unknown key "x"; known: any, count, hosts, inner, labels, level, maybe, name, on`
	if err := Join(slices.Clone(doc.Problems())); err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// Add says nothing more of what is wrong already.
func TestDocumentAdd(t *testing.T) {
	doc := one(t, "name: a\nhosts: [x, 192.0.2.1]\nlabels: {a.b: c}\n")
	doc.Decode(&strictDocument{})
	doc.Add("hosts[0]", "again")
	doc.Add("hosts", "above")
	doc.Add("hosts[0].x", "below")
	doc.Add("hosts[1]", "another")
	doc.Add("labels.a.b", "with a dot")
	doc.Add("nam", "of what is not there")
	var got []string
	for _, p := range doc.Problems() {
		got = append(got, p.Error())
	}
	want := []string{
		`s.yaml:2:9: hosts[0]: "x", want an address such as 192.0.2.1 or 2001:db8::1`,
		`s.yaml:2:12: hosts[1]: another`,
		`s.yaml:3:15: labels.a.b: with a dot`,
		`s.yaml:1:1: nam: of what is not there`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !doc.Bad("hosts") || doc.Bad("name") || doc.Bad("host") {
		t.Error("wrong keys are bad")
	}
}

// What comes before a syntax error is there.
func TestSplitError(t *testing.T) {
	docs, err := Split("s.yaml", []byte("a: 1\n---\nb: [\n"))
	if len(docs) != 1 || err == nil || !strings.HasPrefix(err.Error(), "s.yaml:4:") {
		t.Errorf("%d documents, %v", len(docs), err)
	}
	if _, err := Split("s.yaml", []byte("a: *secret\n")); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("an alias: %v", err)
	}
}
