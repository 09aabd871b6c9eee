package profiles

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/kilnhq/kiln/internal/strictyaml"
)

var keyRE = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9]*(\.[a-zA-Z][a-zA-Z0-9]*)*$`)

// Set changes one value of the profile: KEY=VALUE, where the key's parts have
// dots between them and the value is YAML: "disk.size=8GiB",
// "kernel.append=[debug]". The profile is not validated.
func (p *Profile) Set(assignment string) error {
	key, value, ok := strings.Cut(assignment, "=")
	if !ok || !keyRE.MatchString(key) {
		return fmt.Errorf("%w: --set %q, want KEY=VALUE, for example disk.size=8GiB", ErrInvalid, assignment)
	}
	parts := strings.Split(key, ".")
	doc := strings.Join(parts, ": {") + ": " + value + strings.Repeat("}", len(parts)-1) + "\n"
	was := p.Arch
	if err := strictyaml.Decode("--set "+assignment, []byte(doc), p); err != nil {
		return err
	}
	p.Kernel.edit()
	if arch := p.Arch; arch != was {
		p.Arch = was
		return p.SetArch(arch)
	}
	return nil
}
