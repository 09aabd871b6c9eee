package config

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnhq/kiln/internal/strictyaml"
	"github.com/kilnhq/kiln/machine/blockdev"
)

// maxHostname is the longest name that the kernel takes.
const maxHostname = 64

func (h *Hostname) check(doc *strictyaml.Document) {
	switch {
	case !isDomain(h.Hostname):
		doc.Add("hostname", "%q, want labels of letters, digits and '-' with dots between them", h.Hostname)
	case len(h.Hostname) > maxHostname:
		doc.Add("hostname", "%d bytes, want at most %d", len(h.Hostname), maxHostname)
	case isAddress(h.Hostname):
		doc.Add("hostname", "%q is an address, want a name", h.Hostname)
	}
}

func (i *Install) check(doc *strictyaml.Document) {
	switch {
	case i.Disk == "" && i.Selector == "":
		doc.Add("disk", "missing, want the path of a disk, or a selector")
	case i.Disk != "" && i.Selector != "":
		doc.Add("selector", "next to disk, want one of them")
	}
	if i.Disk != "" && (!isPath(i.Disk) || !strings.HasPrefix(i.Disk, "/dev/")) {
		doc.Add("disk", "%q, want the path of a device such as /dev/sda", i.Disk)
	}
	if i.Selector != "" {
		if _, err := blockdev.ParseSelector(i.Selector); err != nil {
			doc.Add("selector", "%v", err)
		}
	}
	if i.Image != "" {
		checkImage(doc, "image", i.Image)
	}
	for n, arg := range i.KernelArgs {
		if arg == "" || !isPrintable(arg) || strings.TrimSpace(arg) != arg {
			doc.Add(item("kernelArgs", n), "%q, want an argument such as console=ttyS0", arg)
		}
	}
}

func (r *Resolver) check(doc *strictyaml.Document) {
	if len(r.Nameservers) == 0 && len(r.Search) == 0 {
		doc.Add("nameservers", "missing, want name servers, search domains or both")
	}
	for i, a := range r.Nameservers {
		switch {
		case !isUnicast(a) || a.Zone() != "":
			doc.Add(item("nameservers", i), "%v, want the address of a server", a)
		case slices.Index(r.Nameservers, a) < i:
			doc.Add(item("nameservers", i), "%v again", a)
		}
	}
	for i, s := range r.Search {
		switch {
		case !isDomain(s):
			doc.Add(item("search", i), "%q, want a domain such as example.com", s)
		case slices.Index(r.Search, s) < i:
			doc.Add(item("search", i), "%q again", s)
		}
	}
}

func (h *Hosts) check(doc *strictyaml.Document) {
	first := map[netip.Addr]int{}
	for i, e := range h.Entries {
		where := item("entries", i)
		if e.Address.Zone() != "" || e.Address.Is4In6() {
			doc.Add(where+".address", "%v, want an address without zone and not IPv4 in IPv6", e.Address)
		}
		if j, ok := first[e.Address]; ok {
			doc.Add(where+".address", "%v again; it is in entries[%d]", e.Address, j)
		} else {
			first[e.Address] = i
		}
		for j, name := range e.Names {
			if !isDomain(name) || isAddress(name) {
				doc.Add(item(where+".names", j), "%q, want a name", name)
			}
		}
	}
}

func (t *Time) check(doc *strictyaml.Document) {
	if t.Disabled && len(t.Servers) > 0 {
		doc.Add("servers", "next to disabled: true, want one of them")
	}
	for i, s := range t.Servers {
		switch {
		case !isDomain(s) && !isAddress(s):
			doc.Add(item("servers", i), "%q, want the name or address of a server, without port", s)
		case slices.Index(t.Servers, s) < i:
			doc.Add(item("servers", i), "%q again", s)
		}
	}
	within(doc, "bootWait", t.BootWait, 0, time.Hour)
}

func (k *Kernel) check(doc *strictyaml.Document) {
	seen := map[string]string{}
	for _, name := range sortedKeys(k.Sysctls) {
		where, value := "sysctls."+name, string(k.Sysctls[name])
		file, ok := sysctlFile(name)
		switch {
		case !ok:
			doc.Add(where, "want a name such as net.ipv4.ip_forward, below one of %s", strings.Join(sysctlRoots(), ", "))
		case seen[file] != "":
			doc.Add(where, "the same as %s, want it once", seen[file])
		case !isPrintable(value) || value == "":
			doc.Add(where, "%q, want one line of text", value)
		}
		seen[file] = name
	}
	loaded := map[string]bool{}
	for i, m := range k.Modules {
		where, name := item("modules", i), strings.ReplaceAll(m.Name, "-", "_")
		switch {
		case !isWord(m.Name, "_-") || len(m.Name) > 55:
			doc.Add(where+".name", "%q, want the name of a module, without path and .ko", m.Name)
		case loaded[name]:
			doc.Add(where+".name", "module %s again", m.Name)
		}
		loaded[name] = true
		if !isPrintable(m.Parameters) {
			doc.Add(where+".parameters", "%q, want one line of text", m.Parameters)
		}
	}
}

func sysctlRoots() []string {
	return []string{"abi", "crypto", "debug", "dev", "fs", "kernel", "net", "sunrpc", "user", "vm"}
}

// SysctlFile returns the path of a kernel parameter. As in sysctl(8), dots in the
// name of the parameter are slashes and slashes dots: net.ipv4.conf.eth0/1.forwarding.
func SysctlFile(name string) string { return "/proc/sys/" + swapDots(name) }

func swapDots(name string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

func sysctlFile(name string) (string, bool) {
	file := swapDots(name)
	root, _, nested := strings.Cut(file, "/")
	return file, nested && path.Clean(file) == file && slices.Contains(sysctlRoots(), root) &&
		isWord(file, "_./-") && len(file) < 256
}

func (f *File) check(doc *strictyaml.Document) {
	if !isPath(f.Path) || !strings.HasPrefix(f.Path, "/var/") {
		doc.Add("path", "%q, want a path below /var without . and ..", f.Path)
	}
	if _, err := f.Data(); err != nil {
		doc.Add("content", "%v", err)
	}
}

// Data returns what is in the file.
func (f *File) Data() ([]byte, error) {
	if f.Encoding != EncodingBase64 {
		return []byte(f.Content.Reveal()), nil
	}
	data, err := base64.StdEncoding.DecodeString(strings.TrimSpace(f.Content.Reveal()))
	if err != nil { // which has no more of the content than an offset
		return nil, fmt.Errorf("not base64: %w", err)
	}
	return data, nil
}

func item(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }

// within reports a duration that is out of bounds.
func within(doc *strictyaml.Document, where string, d Duration, least, most time.Duration) {
	if time.Duration(d) < least || time.Duration(d) > most {
		doc.Add(where, "%v, want %v to %v", d, least, most)
	}
}

// isLabel reports whether s is a label of a domain name (RFC 1123).
func isLabel(s string) bool {
	return len(s) <= 63 && isWord(s, "-") && s[0] != '-' && s[len(s)-1] != '-'
}

// isDomain reports whether s is a domain name, without a dot at its end.
func isDomain(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return len(s) <= 253
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// isUnicast reports whether a is what one machine can have.
func isUnicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// isPath reports whether s is an absolute path in its shortest form.
func isPath(s string) bool {
	return path.IsAbs(s) && path.Clean(s) == s && isPrintable(s) && len(s) < 4096
}

// isPrintable reports whether s has no control characters.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// isWord reports whether s is letters, digits and the other characters, at least
// one.
func isWord(s, other string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(other, c) >= 0) {
			return false
		}
	}
	return s != ""
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
