// Package domain reads and writes lists of domain names as DHCP and router
// advertisements carry them.
//
// A name is a row of labels, each a length byte (1 to 63) and so many bytes,
// ended by a zero byte (RFC 1035, section 3.1). In DHCPv4's option 119 (RFC
// 3397) a label may be a pointer: two bytes whose upper two bits are set, the
// rest an offset from the start of the list where the name goes on. DHCPv6 (RFC
// 8415, section 10) and router advertisements (RFC 8106) have no pointers; the
// latter fill up with zeros.
package domain

import (
	"errors"
	"fmt"
	"strings"
)

const (
	maxName  = 253 // letters of a name, RFC 1035
	maxLabel = 63
	maxNames = 64 // of a list, here
)

var errCut = errors.New("domain names: list ends within a name")

// Parse returns the names of a list, without a final dot. Names are as Valid
// wants them, so that they can be written into a file; one that is not makes
// an error of the list.
func Parse(data []byte, pointers bool) ([]string, error) {
	var names []string
	for at := 0; at < len(data); {
		name, next, err := parseName(data, at, pointers)
		if err != nil {
			return nil, err
		}
		at = next
		if name == "" {
			continue
		}
		if !Valid(name) {
			return nil, fmt.Errorf("domain names: %.80q is no domain name", name)
		}
		if len(names) == maxNames {
			return nil, fmt.Errorf("domain names: more than %d", maxNames)
		}
		names = append(names, name)
	}
	return names, nil
}

// parseName returns the name at an offset and the offset behind it. Each pointer
// must lead to before the one that led to it, which ends every chain.
func parseName(data []byte, at int, pointers bool) (name string, next int, err error) {
	var labels []string
	length, limit := 0, len(data)
	next = -1
	for {
		if at >= limit {
			return "", 0, errCut
		}
		n := int(data[at])
		switch {
		case n == 0:
			if next < 0 {
				next = at + 1
			}
			return strings.Join(labels, "."), next, nil
		case n <= maxLabel:
			if at+1+n > limit {
				return "", 0, errCut
			}
			if length += n + 1; length > maxName+1 {
				return "", 0, fmt.Errorf("domain names: a name has more than %d letters", maxName)
			}
			labels = append(labels, string(data[at+1:at+1+n]))
			at += 1 + n
		case n >= 0xc0 && pointers:
			if at+2 > len(data) {
				return "", 0, errCut
			}
			to := (n&0x3f)<<8 | int(data[at+1])
			if to >= at {
				return "", 0, fmt.Errorf("domain names: pointer at %d leads forward, to %d", at, to)
			}
			if next < 0 {
				next = at + 2
			}
			limit, at = at, to
		default:
			return "", 0, fmt.Errorf("domain names: label of length 0x%02x", n)
		}
	}
}

// Append appends a name without pointers to b. The name must be Valid.
func Append(b []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return append(b, 0)
}

// Valid says whether name, without a final dot, has letters, digits, hyphens
// and underscores only, in labels of 1 to 63 that neither begin nor end with a
// hyphen, 253 in all.
func Valid(name string) bool {
	if len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
