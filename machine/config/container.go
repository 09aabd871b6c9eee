package config

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kilnhq/kiln/internal/bytesize"
	"github.com/kilnhq/kiln/internal/spelling"
	"github.com/kilnhq/kiln/internal/strictyaml"
)

// minMemory is the least memory, in bytes, that a container starts with.
const minMemory = 4 << 20

const wantName = "a name of at most 63 lower-case letters, digits and '-'"

// isName reports whether s is a DNS label in lower case.
func isName(s string) bool { return isLabel(s) && strings.ToLower(s) == s }

func checkImage(doc *strictyaml.Document, where, image string) {
	if _, err := name.ParseReference(image); err != nil {
		doc.Add(where, "%q is no reference of an image: %v", image, err)
	}
}

func (r *Registry) check(doc *strictyaml.Document) {
	if r.Name != "*" {
		if _, err := name.NewRegistry(r.Name, name.StrictValidation); err != nil || strings.ContainsAny(r.Name, "/ ") {
			doc.Add("name", "%q, want a host with or without port, or *", r.Name)
		}
	} else if r.Auth != nil {
		doc.Add("auth", "credentials for any host, want a document with the name of the host")
	}
	seen := map[string]bool{}
	for i, m := range r.Mirrors {
		where := item("mirrors", i) + ".url"
		u, err := url.Parse(m.URL)
		switch {
		case err != nil:
			doc.Add(where, "no URL, want one such as https://mirror.example.com")
		case u.User != nil:
			doc.Add(where, "has credentials, want them as auth of a Registry with the name of the mirror's host")
		case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "":
			doc.Add(where, "%q, want a URL such as https://mirror.example.com", u.Redacted())
		case seen[m.URL]:
			doc.Add(where, "%q again", m.URL)
		}
		seen[m.URL] = true
	}
	if r.NoFallback && len(r.Mirrors) == 0 {
		doc.Add("noFallback", "without mirrors there is nothing else to ask, want mirrors")
	}
	if r.CA != "" {
		checkCertificates(doc, "ca", r.CA)
		if r.InsecureSkipVerify {
			doc.Add("insecureSkipVerify", "next to ca, want one of them")
		}
	}
	if a := r.Auth; a != nil {
		switch user, password, token := a.Username != "", !a.Password.IsZero(), !a.IdentityToken.IsZero(); {
		case token && (user || password):
			doc.Add("auth", "an identity token next to user name and password, want one of them")
		case !token && !(user && password):
			doc.Add("auth", "want user name and password, or an identity token")
		}
	}
}

func (s *Service) check(doc *strictyaml.Document) {
	if !isName(s.Name) {
		doc.Add("name", "%q, want %s", s.Name, wantName)
	}
	checkImage(doc, "image", s.Image)
	for where, list := range map[string][]string{"command": s.Command, "args": s.Args} {
		for i, arg := range list {
			if strings.Contains(arg, "\x00") {
				doc.Add(item(where, i), "%q has a zero byte", arg)
			}
		}
	}
	if s.WorkingDir != "" && !isPath(s.WorkingDir) {
		doc.Add("workingDir", "%q, want an absolute path without . and ..", s.WorkingDir)
	}
	for _, key := range sortedKeys(s.Environment) {
		switch {
		case !isWord(key, "_") || '0' <= key[0] && key[0] <= '9':
			doc.Add("environment."+key, "want a name of letters, digits and '_', not a digit first")
		case strings.Contains(s.Environment[key].Reveal(), "\x00"):
			doc.Add("environment."+key, "a secret with a zero byte")
		}
	}
	s.checkMounts(doc)
	if len(s.Ports) > 0 && s.Network != NetworkBridge {
		doc.Add("ports", "network is %s, want ports for %s only", s.Network, NetworkBridge)
	}
	for i, c := range s.Capabilities {
		switch {
		case !slices.Contains(capabilities(), c):
			doc.Add(item("capabilities", i), "unknown capability %q%s", c, spelling.Hint(c, capabilities()))
		case slices.Index(s.Capabilities, c) < i:
			doc.Add(item("capabilities", i), "%s again", c)
		}
	}
	if s.Privileged && len(s.Capabilities) > 0 {
		doc.Add("capabilities", "next to privileged: true, which are all of them")
	}
	if m := s.Resources.Memory; m != 0 && m < minMemory {
		doc.Add("resources.memory", "%v, want at least %v", m, bytesize.Size(minMemory))
	}
	within(doc, "stopTimeout", s.StopTimeout, 0, time.Hour)
	for i, other := range s.WaitFor.Services {
		switch {
		case !isName(other):
			doc.Add(item("waitFor.services", i), "%q, want %s", other, wantName)
		case other == s.Name:
			doc.Add(item("waitFor.services", i), "the service itself")
		}
	}
	for i, p := range s.WaitFor.Paths {
		if !isPath(p) {
			doc.Add(item("waitFor.paths", i), "%q, want an absolute path without . and ..", p)
		}
	}
}

func (s *Service) checkMounts(doc *strictyaml.Document) {
	seen := map[string]bool{}
	for i, m := range s.Mounts {
		where := item("mounts", i)
		switch {
		case !isPath(m.Target) || m.Target == "/":
			doc.Add(where+".target", "%q, want an absolute path without . and .. below the container's root", m.Target)
		case seen[m.Target]:
			doc.Add(where+".target", "%q again", m.Target)
		}
		seen[m.Target] = true
		if m.Type == MountBind {
			if !isPath(m.Source) {
				doc.Add(where+".source", "%q, want an absolute path without . and ..", m.Source)
			}
			if m.Size != 0 {
				doc.Add(where+".size", "%v, want it for %s only", m.Size, MountTmpfs)
			}
		} else if m.Source != "" {
			doc.Add(where+".source", "%q, want it for %s only", m.Source, MountBind)
		}
	}
}

// capabilities returns the names in linux/capability.h.
func capabilities() []string {
	return []string{"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
		"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
		"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN",
		"CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW",
		"CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
		"CAP_SYS_CHROOT", "CAP_SYSLOG", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE",
		"CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM"}
}
