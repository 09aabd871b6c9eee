package tree

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrLoop is wrapped by the errors of Resolve for a path with too many
// symbolic links.
var ErrLoop = errors.New("too many symbolic links")

// maxLinks is how many symbolic links Resolve follows, as path_resolution(7).
const maxLinks = 40

// Resolve follows every symbolic link in name, the last component's too, and
// returns the path it stands for. The tree's root is what an absolute target
// starts from and what ".." cannot leave. Components that do not exist are
// kept as they are, so the result may name something that is not in the tree.
func (t *Tree) Resolve(name string) (string, error) {
	rest := name
	done := "."
	for links := 0; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		ino := t.inodes[next]
		if ino == nil || ino.Target == "" {
			done = next
			continue
		}
		if links++; links > maxLinks || len(ino.Target)+len(rest) > 1<<16 {
			return "", fmt.Errorf("%s: %w", name, ErrLoop)
		}
		if strings.HasPrefix(ino.Target, "/") {
			done = "."
		}
		rest = ino.Target + "/" + rest
	}
	return done, nil
}
