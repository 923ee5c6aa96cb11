package nfs3

// RmdirArgs are the arguments of RMDIR (RFC 1813 §3.3.13).
type RmdirArgs = DirOpArgs

// RmdirResult are the results of RMDIR: data of the parent directory.
type RmdirResult = WCCResult
