package platform

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// errEmpty is the error for content that is nothing but white space.
var errEmpty = errors.New("the machine configuration is empty")

// foreign lists what is no machine configuration by how it begins.
func foreign() []struct{ prefix, name string } {
	return []struct{ prefix, name string }{
		{"#cloud-config", "a cloud-init configuration (#cloud-config)"},
		{"#cloud-boothook", "a cloud-init boot hook (#cloud-boothook)"},
		{"#include", "a list of cloud-init user data (#include)"},
		{"#part-handler", "a cloud-init part handler (#part-handler)"},
		{"## template:", "a template of cloud-init (## template:)"},
		{"Content-Type:", "a MIME message, as cloud-init takes it"},
		{"MIME-Version:", "a MIME message, as cloud-init takes it"},
		{"#!", "a script (#!)"},
		{"<!", "a page for a browser; is a login page or a proxy in the way?"},
		{"<html", "a page for a browser; is a login page or a proxy in the way?"},
		{"<HTML", "a page for a browser; is a login page or a proxy in the way?"},
		{"<?xml", "an XML document"},
		{"{\"ignition\"", "an Ignition configuration"},
		{"-----BEGIN", "a key, a certificate or an encrypted message"},
	}
}

const advice = "; want the YAML of 'kiln config generate'"

// Decode returns the text of a machine configuration: data, decompressed if it is
// gzip, without a byte order mark. It refuses what is none by what it looks like.
func Decode(data []byte) ([]byte, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("the machine configuration has more than %d bytes", MaxSize)
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("the machine configuration begins as gzip: %w", err)
		}
		if data, err = io.ReadAll(io.LimitReader(z, MaxSize+1)); err != nil {
			return nil, fmt.Errorf("the machine configuration is damaged gzip: %w", err)
		}
		if len(data) > MaxSize {
			return nil, fmt.Errorf("the machine configuration has more than %d bytes when it is decompressed", MaxSize)
		}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	text := bytes.TrimSpace(data)
	if len(text) == 0 {
		return nil, errEmpty
	}
	squeezed := text
	if text[0] == '{' { // JSON may have white space behind it
		squeezed = append([]byte("{"), bytes.TrimSpace(text[1:])...)
	}
	for _, f := range foreign() {
		if bytes.HasPrefix(squeezed, []byte(f.prefix)) {
			return nil, fmt.Errorf("found %s%s", f.name, advice)
		}
	}
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, fmt.Errorf("found %d bytes that are no text in UTF-8%s", len(data), advice)
	}
	return data, nil
}
