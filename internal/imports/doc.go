// Package imports has no code. Its test holds the table of which package of the
// module may import which; docs/design/packages.md gives the reasons.
package imports
