//go:build linux

package control

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func frame(kind byte, payload string) []byte {
	var b bytes.Buffer
	if err := writeFrame(&b, kind, []byte(payload)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// What does not keep to the protocol is told why, and nothing else happens.
func TestHostile(t *testing.T) {
	c := serve(t, &recorder{})
	for _, k := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "EOF"},
		{"no head", []byte("Q"), "unexpected EOF"},
		{"kind", frame('X', ""), `control protocol: frame of kind 'X', want Q, D, F, M, E or Z`},
		{"size", []byte("Q\x00\x18\x00\x01"), `control protocol: frame 'Q' of 1572865 bytes, want at most 1572864`},
		{"payload", []byte("Q\x00\x00\x00\x10{}"), `control protocol: frame 'Q' ends after 2 of 16 bytes: unexpected EOF`},
		{"data first", frame('D', "x"), `control protocol: first frame is 'D', want Q`},
		{"finish with data", []byte("F\x00\x00\x00\x01x"), `control protocol: frame 'F' has 1 bytes, want none`},
		{"no JSON", frame('Q', "x"), `invalid request: invalid character 'x' looking for beginning of value`},
		{"two requests", frame('Q', `{"verb":"version"}{}`), `invalid request: something follows the JSON`},
		{"unknown field", frame('Q', `{"verb":"version","role":"admin"}`), `invalid request: json: unknown field "role"`},
		{"unknown verb", frame('Q', `{"verb":"exec"}`), `this node cannot do that: verb "exec"`},
		{"no arguments", frame('Q', `{"verb":"power"}`), `invalid request: EOF`},
		{"unknown argument", frame('Q', `{"verb":"power","args":{"force":true}}`), `invalid request: json: unknown field "force"`},
		{"wrong argument", frame('Q', `{"verb":"power","args":{"action":1}}`), `invalid request: json: cannot unmarshal number into Go struct field PowerRequest.action of type string`},
		{"image cut off", append(frame('Q', `{"verb":"upgrade","args":{}}`), frame('D', "half")...), `unexpected EOF`},
		{"answer in an image", append(frame('Q', `{"verb":"upgrade","args":{}}`), frame('M', "half")...), `control protocol: frame 'M' after the request`},
	} {
		if err := say(t, c, k.data); err == nil || err.Error() != k.want {
			t.Errorf("%s: error %v, want %s", k.name, err, k.want)
		}
	}
}

func TestFrameTooLarge(t *testing.T) {
	err := writeFrame(io.Discard, kindMessage, make([]byte, MaxFrame+1))
	if want := "control protocol: answer of 1572865 bytes, want at most 1572864"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(frame('Q', `{"verb":"version"}`))
	f.Add(frame('F', ""))
	f.Add([]byte("D\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		for {
			kind, payload, err := readFrame(r)
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
					t.Fatal(err)
				}
				return
			}
			again := frame(kind, string(payload))
			if !bytes.Contains(data, again) {
				t.Fatalf("%q was not in %q", again, data)
			}
		}
	})
}

// Whatever is asked, a verb is carried out with the types that are its own, or
// not at all.
func FuzzRequest(f *testing.F) {
	for name := range verbs() {
		f.Add(name, `{}`)
	}
	f.Add("upgrade", `{"size":1}`)
	f.Add("meta", `{"secrets":false}`)
	f.Fuzz(func(t *testing.T, name, args string) {
		v, ok := verbs()[name]
		if !ok {
			return
		}
		n := &recorder{}
		c := &call{node: n, args: []byte(args), data: strings.NewReader("x"), send: func(any) error { return nil }}
		err := v.serve(t.Context(), c)
		if err == nil && n.verb == "" {
			t.Errorf("%s %s did nothing", name, args)
		}
		if err != nil && n.verb != "" {
			t.Errorf("%s %s failed with %v after it was asked for", name, args, err)
		}
	})
}
