package kconfig

import (
	"bytes"
	"compress/gzip"
	"errors"
	"maps"
	"strings"
	"testing"
)

const sample = `#
# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.12.117 Kernel Configuration
#
CONFIG_CC_VERSION_TEXT="gcc \"12\" C:\\"
CONFIG_X86_64=y
CONFIG_XFS_FS=m
# CONFIG_COMPAT is not set
CONFIG_DEFAULT_MMAP_MIN_ADDR=65536
CONFIG_OFF=n
CONFIG_EMPTY=""
CONFIG_LSM="landlock,yama"
CONFIG_ODD="
nonsense
CONFIG_=y
`

func pack(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestParse(t *testing.T) {
	want := Config{
		"CC_VERSION_TEXT": `gcc "12" C:\`, "X86_64": "y", "XFS_FS": "m", "DEFAULT_MMAP_MIN_ADDR": "65536", "EMPTY": "",
		"LSM": "landlock,yama", "ODD": `"`,
	}
	for name, data := range map[string][]byte{"plain": []byte(sample), "gzip": pack(t, []byte(sample))} {
		got, err := Parse(data)
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, want)
		}
		if got := Release(data); got != "6.12.117" {
			t.Errorf("%s: release %q", name, got)
		}
		if a := got.Arch(); a != "amd64" || !got.Yes("X86_64") || got.Yes("XFS_FS") {
			t.Errorf("%s: architecture %q", name, a)
		}
	}
	if a := (Config{"ARM64": "y"}).Arch(); a != "arm64" {
		t.Errorf("architecture %q, want arm64", a)
	}
	if a := (Config{"RISCV": "y"}).Arch(); a != "" {
		t.Errorf("architecture %q of one that is not known", a)
	}
}

func TestParseErrors(t *testing.T) {
	for text, data := range map[string][]byte{
		"no line CONFIG_NAME=VALUE": []byte("#!/bin/sh\n"),
		"unexpected EOF":            pack(t, []byte(sample))[:40],
		"invalid header":            {0x1f, 0x8b, 9, 9, 9, 9, 9, 9, 9, 9, 9},
		"more than 8388608 bytes":   pack(t, bytes.Repeat([]byte("CONFIG_A=y\n"), MaxSize/11+1)),
	} {
		if _, err := Parse(data); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
		if r := Release(data); r != "" {
			t.Errorf("release %q", r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add(pack(f, []byte(sample)))
	f.Add([]byte("CONFIG_A=\"\\\"\nCONFIG_A=\"\\\\\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if (err == nil) != (len(c) > 0) {
			t.Errorf("%d options, %v", len(c), err)
		}
		for name, value := range c {
			if name == "" || strings.ContainsRune(name, '=') || strings.ContainsRune(value, '\n') {
				t.Errorf("%q=%q", name, value)
			}
		}
		Release(data)
	})
}
